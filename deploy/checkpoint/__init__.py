"""A file on disk becomes a Checkpoint: formats, weights, identification and the zoo of known architectures."""

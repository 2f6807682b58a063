"""A Checkpoint becomes a Program, and a Program an Artifact per format."""

"""deployctl: from a fine-tuned PyTorch checkpoint to a proven, servable Triton model version.

Importing this package imports nothing heavy; the rooms below it are imported where they are used.
"""

__version__ = "0.1.0"

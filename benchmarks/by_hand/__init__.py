"""What an engineer writes by hand to serve a PyTorch model faster, one small script per route; nothing of deployctl."""

SENTENCES = "MiniLM"
"""The one network here that is not torchvision's: a sentence encoder in a folder."""

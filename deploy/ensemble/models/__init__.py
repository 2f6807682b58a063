"""What is published as `model.py` of Triton's python backend: each file whole in itself, without deployctl."""

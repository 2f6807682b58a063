"""A fine-tuned causal language model becomes a version for Triton's vLLM backend: read, sized, proven, served."""

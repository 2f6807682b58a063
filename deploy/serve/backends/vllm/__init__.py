"""The backend `vllm`: `model.py` in the server's stub, `engine.py` and `asking.py` in vLLM's own environment."""

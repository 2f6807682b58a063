"""Python-based backends that let the local engine execute `model.onnx` and `model.pt2`.

Owns what runs inside the server's stub processes. Nothing of deploy imports this; `serve.local` links its files into
the server's backend folder.
"""

"""The backend named `onnxruntime`: ONNX graphs through the ONNX Runtime of this environment."""

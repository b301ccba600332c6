"""ONNX graphs and files, and their quantization."""

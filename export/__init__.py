"""From a trained student to an ONNX file that is proven equal to it."""

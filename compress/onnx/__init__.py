"""Write networks as ONNX files, quantize them, and run them in ONNX Runtime.

>>> import tempfile
>>> from pathlib import Path
>>> import torch
>>> from torch import nn
>>> from compress.onnx import open_session, run_session, translate, write_model
>>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
>>> model = translate(
...     network, input_shape=(3, 2, 2), output="logits", dynamic={0: "batch"}, opset=18
... )
>>> path = Path(tempfile.mkdtemp()) / "network.onnx"
>>> files, size_bytes = write_model(model, path, metadata={})
>>> run_session(open_session(path), torch.zeros(4, 3, 2, 2).numpy()).shape
(4, 5)
"""

from compress.onnx.files import check_file, open_session, run_session, takes_pixels, write_model
from compress.onnx.graphs import INPUT, translate
from compress.onnx.quantize import QuantizationInfo, quantize_onnx

__all__ = [
    "INPUT",
    "QuantizationInfo",
    "check_file",
    "open_session",
    "quantize_onnx",
    "run_session",
    "takes_pixels",
    "translate",
    "write_model",
]

"""Export by torch's older tracer, which takes a fraction of the time, where a test allows it."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.onnx import graphs


def _trace(
    network: nn.Module, example: Tensor, output: str, dynamic: Mapping[int, str], opset: int
) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and said at every call
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=[graphs.INPUT],
            output_names=[output],
            dynamic_axes={
                graphs.INPUT: dict(dynamic),
                output: {i: f"{output}_{name}" if i else name for i, name in dynamic.items()},
            },
        )
    return onnx.load_model_from_string(file.getvalue())


@contextmanager
def traced_exports() -> Iterator[None]:
    """Inside the block networks are traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_export", _trace)
        yield

"""Translate a torch network to an ONNX graph in memory."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.models.folding import fold_batchnorm

INPUT = "images"
# Operators that hold weights.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class RawPixels(nn.Module):
    """A network with its normalisation inside: uint8 pixels (N, H, W, 3) -> the network's output.

    (x / 255 - mean) / std is one multiplication and one addition here.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        mean, std = (
            torch.tensor(preprocessing[key], dtype=torch.float64).view(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels: Tensor) -> Tensor:
        # Turned while a value is one byte; strides left as they were would give extra nodes.
        images = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        result: Tensor = self.network(images * self.scale + self.shift)
        return result


def translate(
    network: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    output: str,
    dynamic: Mapping[int, str],
    opset: int,
    raw_pixels: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """The network in eval mode, batch norm folded, as a model of input `images`.

    Args:
        network: takes (N, C, H, W); on any device, not changed.
        input_shape: (C, H, W).
        output: the name of its output.
        dynamic: dimensions of the input that may have any size, with their names.
        raw_pixels: preprocessing with `mean` and `std`; the model then takes uint8 (N, H, W, 3).

    Raises:
        UserError: torch cannot express the network in ONNX, or not in this opset.
    """
    folded = fold_batchnorm(network).network.cpu()
    # Two images: torch.export takes a dimension of one for a constant.
    example = torch.zeros(2, *input_shape)
    if raw_pixels is not None:
        folded = RawPixels(folded, raw_pixels).eval()
        example = example.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    try:
        with _quiet():
            model = _export(folded, example, output, dynamic, opset)
    except RuntimeError as error:  # OnnxExporterError is one
        raise UserError(
            f"torch {torch.__version__} cannot export this network: {_reason(error)}"
        ) from error
    written = opset_of(model)
    if written != opset:
        raise UserError(
            f"torch {torch.__version__} wrote opset {written} instead of {opset}; "
            f"set opset to {written}"
        )
    _remove_traces(model)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model asks for; 0 where it names none."""
    versions = {entry.domain: int(entry.version) for entry in model.opset_import}
    return versions.get("", versions.get("ai.onnx", 0))


def _export(
    network: nn.Module, example: Tensor, output: str, dynamic: Mapping[int, str], opset: int
) -> onnx.ModelProto:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[output],
        dynamic_shapes=({i: torch.export.Dim(name) for i, name in dynamic.items()},),
        external_data=False,
        verbose=False,
    )
    assert program is not None  # with dynamo=True there always is one
    return program.model_proto


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces, which hold paths of this machine."""
    model.metadata_props.clear()
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.metadata_props.clear()
        for item in [*graph.value_info, *graph.input, *graph.output, *graph.initializer]:
            item.metadata_props.clear()
        for node in graph.node:
            node.metadata_props.clear()
            node.doc_string = ""
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for function in model.functions:
        function.metadata_props.clear()
        for node in function.node:
            node.metadata_props.clear()
            node.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide deprecation warnings of torch and onnxscript, which the user did not cause."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            for module in (r"torch\.", r"onnxscript\.", r"onnx_ir\.", r"copyreg"):
                warnings.filterwarnings("ignore", category=category, module=module)
        yield


def _reason(error: BaseException) -> str:
    """The first line of the innermost error in torch's chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

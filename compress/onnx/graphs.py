"""From a torch network to an ONNX graph in memory, by either of torch's exporters."""

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.models.folding import fold_batchnorm

Exporter = Literal["dynamo", "torchscript"]
INPUT = "images"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class RawPixels(nn.Module):
    """A network that takes pixels as they are: uint8 (N, H, W, 3) -> what the network gives.

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
    exporter: Exporter = "dynamo",
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
    write = {"dynamo": _dynamo, "torchscript": _torchscript}[exporter]
    try:
        with _quiet():
            model = write(folded, example, output, dynamic, opset)
    except RuntimeError as error:  # OnnxExporterError is one
        raise UserError(
            f"torch {torch.__version__} cannot export this network ({exporter} exporter): "
            f"{_reason(error)}"
        ) from error
    found = opset_of(model)
    if found != opset:
        raise UserError(
            f"torch {torch.__version__} wrote opset {found} where {opset} was asked for "
            f"({exporter} exporter); ask for opset {found}"
        )
    _forget_origin(model)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model asks for; 0 where it names none."""
    versions = {entry.domain: int(entry.version) for entry in model.opset_import}
    return versions.get("", versions.get("ai.onnx", 0))


def _dynamo(
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


def _torchscript(
    network: nn.Module, example: Tensor, output: str, dynamic: Mapping[int, str], opset: int
) -> onnx.ModelProto:
    # To a file, not to memory: above protobuf's limit it puts the tensors beside the model.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with _nothing_frozen():
                torch.onnx.export(
                    network,
                    (example,),
                    str(path),
                    dynamo=False,
                    opset_version=opset,
                    input_names=[INPUT],
                    output_names=[output],
                    dynamic_axes={
                        INPUT: dict(dynamic),
                        # A map is smaller than its image: another name, but for the batch.
                        output: {i: f"{output}_{n}" if i else n for i, n in dynamic.items()},
                    },
                )
        except (ImportError, NotImplementedError, TypeError) as error:
            raise UserError(
                f"torch {torch.__version__} has no torchscript exporter any more; "
                "use exporter 'dynamo'"
            ) from error
        return onnx.load(path)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes on each node: stack traces with this machine's paths."""
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
    """Warnings that torch and onnxscript give each other reason for, none of the user's making."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            for module in (r"torch\.", r"onnxscript\.", r"onnx_ir\.", r"copyreg"):
                warnings.filterwarnings("ignore", category=category, module=module)
        for message in (r"You are using the legacy TorchScript", r"The feature will be removed"):
            warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
        yield


@contextmanager
def _nothing_frozen() -> Iterator[None]:
    """Refuse what torch only warns of: a choice that the image makes, fixed as it fell once."""
    kind = torch.jit.TracerWarning  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", kind)
        yield
    for one in caught:
        if issubclass(one.category, kind):
            raise RuntimeError(f"{one.message}; exporter 'dynamo' may be able to")
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of torch's chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

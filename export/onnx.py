"""A deployed network as one self-contained ONNX file, and ONNX Runtime sessions on it."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from compress.errors import UserError
from compress.models.folding import fold_batchnorm

INPUT, OUTPUT = "images", "logits"


def export_onnx(
    network: nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    preprocessing: Mapping[str, Any],
    fingerprint: str,
    opset: int = 18,
) -> None:
    """Write `network` with batch norm folded, in eval mode, weights inside, any batch size.

    The file's only input is `images`, normalised float32 (N, C, H, W); its only output `logits`
    (N, K). Its metadata hold `class_names` and `preprocessing` as JSON and the `fingerprint`.

    Args:
        network: takes (N, C, H, W), gives (N, K); on any device, not changed.
        path: written in one step.
        input_shape: (C, H, W).

    Raises:
        UserError: torch cannot express the network in ONNX.
    """
    model = _translate(network, input_shape, opset)
    _forget_origin(model)
    model.metadata_props.clear()
    metadata = {
        "class_names": json.dumps(list(class_names)),
        "preprocessing": json.dumps(dict(preprocessing)),
        "fingerprint": fingerprint,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)


def _translate(
    network: nn.Module, input_shape: tuple[int, int, int], opset: int
) -> onnx.ModelProto:
    """The network, batch norm folded, as an ONNX model that takes any number of images."""
    folded = fold_batchnorm(network).network.cpu()
    # Two images: torch.export takes a dimension of one for a constant.
    images = torch.zeros(2, *input_shape)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                folded,
                (images,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"torch {torch.__version__} cannot export this network: {reason}"
        ) from error
    assert program is not None  # with dynamo=True there always is one
    return program.model_proto


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with as many threads as torch uses.

    Raises:
        UserError: the file is missing or no ONNX model.
    """
    if not path.is_file():
        raise UserError(f"{path} not found (looked in {Path.cwd()})")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common base that is public
        message = " ".join(str(error).split())
        raise UserError(f"ONNX Runtime cannot load {path}: {message}") from error


def run_session(
    session: onnxruntime.InferenceSession, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Logits (N, K) of normalised images (N, C, H, W)."""
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
    return logits


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes on each node: stack traces with this machine's paths."""
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
def _quiet_exporter() -> Iterator[None]:
    """Warnings that torch and onnxscript give each other reason for, none of the user's making."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            for module in (r"torch\.", r"onnxscript\.", r"onnx_ir\.", r"copyreg"):
                warnings.filterwarnings("ignore", category=category, module=module)
        yield

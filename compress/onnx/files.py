"""Write ONNX files in one step, check them, and run them in ONNX Runtime."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from compress.errors import UserError
from compress.onnx.graphs import INPUT, opset_of

# Protobuf's limit is 2^31 bytes for the whole model; the graph itself fits in the rest.
LARGEST_EMBEDDED_BYTES = 2_000_000_000


def write_model(
    model: onnx.ModelProto, path: Path, metadata: Mapping[str, str], embed_up_to: int | None = None
) -> tuple[tuple[str, ...], int]:
    """Check and write a model; returns the names of its files and their size in bytes.

    Args:
        embed_up_to: most bytes of tensors inside the file (default: the most that protobuf can
            hold); larger ones go to `NAME.data` beside the model, which refers to that name.
    """
    onnx.helper.set_model_props(model, dict(metadata))
    limit = LARGEST_EMBEDDED_BYTES if embed_up_to is None else embed_up_to
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        target = Path(folder) / path.name
        names: tuple[str, ...] = (path.name,)
        if sum(_bytes_of(tensor) for tensor in model.graph.initializer) <= limit:
            target.write_bytes(model.SerializeToString(deterministic=True))
        else:
            names = (path.name, f"{path.name}.data")
            onnx.save_model(model, target, save_as_external_data=True, location=names[1])
            (target.parent / names[1]).chmod(0o644)
        check_file(target)
        size = sum((target.parent / name).stat().st_size for name in names)
        move(target.parent, path.parent, names)
    return names, size


def _bytes_of(tensor: onnx.TensorProto) -> int:
    item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    sizes: list[int] = list(tensor.dims)
    return math.prod(sizes) * item


def move(source: Path, target: Path, names: Sequence[str]) -> None:
    """Move a model's files, tensors first, so that no reader finds it without them."""
    for name in reversed(names):
        (source / name).replace(target / name)


def check_file(path: Path) -> int:
    """Check that a file is a valid ONNX model; returns its opset.

    Raises:
        UserError: it is damaged, breaks ONNX's rules, or asks for operators of a later version.
    """
    try:
        opset = opset_of(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf's exceptions are not all public
        raise UserError(f"{path} is no ONNX model, or damaged: {_sentence(error)}") from error
    newest = int(onnx.defs.onnx_opset_version())
    if not 1 <= opset <= newest:
        raise UserError(
            f"{path} asks for opset {opset}; onnx {onnx.__version__} knows 1 to {newest}: "
            "export it with one of these, or install a later onnx and onnxruntime"
        )
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # ValidationError, InferenceError, RuntimeError
        raise UserError(f"{path} is no valid ONNX model: {_sentence(error)}") from error
    return opset


def open_session(
    path: Path, *, threads: int | None = None, spin: bool = True, exact: bool = False
) -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime on the CPU.

    Args:
        threads: of one operator (default: as many as torch uses).
        spin: let waiting threads keep their cores; leave it out where nothing is timed.
        exact: run the graph as it is written: layers of an int8 file in float on dequantized
            values, without the CPU's integer kernels.

    Raises:
        UserError: the file is missing or no ONNX model.
    """
    if not path.is_file():
        raise UserError(f"{path} not found (looked in {Path.cwd()})")
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads or torch.get_num_threads()
    session_options.inter_op_num_threads = 1
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    session_options.log_severity_level = 3  # errors only
    if exact:
        session_options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    try:
        # By name, since tensors in a file of their own are searched beside it.
        return onnxruntime.InferenceSession(
            str(path), session_options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common base that is public
        raise UserError(f"ONNX Runtime cannot load {path}: {_sentence(error)}") from error


def run_session(session: onnxruntime.InferenceSession, images: NDArray[Any]) -> NDArray[np.float32]:
    """Run a file on its input `images`; returns its only output, logits (N, K) or feature maps."""
    result: NDArray[np.float32] = session.run(None, {INPUT: images})[0]
    return result


def takes_pixels(session: onnxruntime.InferenceSession) -> bool:
    """True if the file takes uint8 (N, H, W, 3) and normalises inside."""
    return bool(session.get_inputs()[0].type == "tensor(uint8)")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())

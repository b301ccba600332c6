"""A float ONNX file as an int8 file."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from compress.errors import UserError, nearest
from compress.onnx.files import open_session, write_model
from compress.onnx.qdq import (
    CALIBRATIONS,
    LARGEST_SAFE_WEIGHT,
    Batches,
    count_layers,
    largest_weight,
    run_tools,
)

LEAVE_OUT = ("first", "last")
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


@dataclass(frozen=True)
class QuantizationInfo:
    """What was done, and the size of the int8 file."""

    calibration: str
    calibration_images: int
    layers: int  # convolutions and matrix products
    quantized_layers: int  # those of them whose weights are int8
    full_range: bool  # weights of 8 bits instead of 7
    size_bytes: int

    def as_dict(self) -> dict[str, str | int]:
        """Plain values, for JSON."""
        return asdict(self)


def quantize_onnx(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[Any]],
    *,
    method: str = "minmax",
    leave_out: Sequence[str] = (),
    full_range: bool = False,
) -> QuantizationInfo:
    """Write `source` with int8 weights and activations to `target`, in one step.

    Deterministic: the same file, images and versions give the same bytes. The metadata of
    `source` (class names, preprocessing, fingerprint) are kept.

    Args:
        source: a float ONNX file with one input.
        calibration: batches of training images as `source` takes them: float32 (N, C, H, W),
            normalised, or uint8 (N, H, W, C). All are held in memory.
        method: how the range of an activation is found, a key of `CALIBRATIONS`.
        leave_out: the `first` or `last` layer, or both, stay float.
        full_range: weights of 8 bits, right only where 8-bit products do not saturate (VNNI, ARM
            dot product); of 7 bits otherwise, right on every CPU.

    Raises:
        UserError: no images or images of another kind, a file that is not ONNX, or a network
            that the tools cannot quantize; `target` is then as it was before.
    """
    for given, known in ((method, tuple(CALIBRATIONS)), *((one, LEAVE_OUT) for one in leave_out)):
        if given not in known:
            raise UserError(
                f"'{given}' is none of {', '.join(known)} (int8){nearest(given, known)}"
            )
    batches = _checked(source, calibration)
    with tempfile.TemporaryDirectory(prefix="quantize.") as folder:
        try:
            model = run_tools(
                source,
                Path(folder),
                batches,
                method=method,
                leave_out=leave_out,
                full_range=full_range,
            )
            _only_used_domains(model)
        except Exception as error:  # the tools raise whatever their parts raise
            reason = " ".join(str(error).replace(folder, "").split()) or type(error).__name__
            raise _cannot(source, reason) from error
    layers, quantized = count_layers(model.graph)
    if not quantized:
        raise _cannot(source, f"none of its {layers} layers has weights that can become int8")
    largest = largest_weight(model.graph)
    if not full_range and largest > LARGEST_SAFE_WEIGHT:
        raise _cannot(
            source,
            f"it made weights of up to {largest} where {LARGEST_SAFE_WEIGHT} is the most whose "
            "products do not saturate on x86 CPUs before VNNI",
        )
    described = onnx.load(source, load_external_data=False).metadata_props
    _, size = write_model(model, target, {entry.key: entry.value for entry in described})
    return QuantizationInfo(
        calibration=method,
        calibration_images=sum(len(batch) for batch in batches.batches),
        layers=layers,
        quantized_layers=quantized,
        full_range=full_range,
        size_bytes=size,
    )


def _checked(source: Path, calibration: Iterable[NDArray[Any]]) -> Batches:
    """The images for the file's input, each batch of the kind that the input takes."""
    wanted = open_session(source).get_inputs()[0]
    dtype = _DTYPES.get(wanted.type, wanted.type)
    batches = [batch for batch in calibration if len(batch)]
    if not batches:
        raise UserError(
            f"there are no calibration images to quantize {source} with; give some of the "
            "training split (512 are usual)"
        )
    for batch in batches:
        fits = batch.ndim == len(wanted.shape) and all(
            given == size or not isinstance(size, int)
            for given, size in zip(batch.shape[1:], wanted.shape[1:], strict=True)
        )
        if not fits or batch.dtype.name != dtype:
            found, expected = (" x ".join(map(str, s)) for s in (batch.shape, wanted.shape))
            raise UserError(
                f"calibration images are {batch.dtype.name} {found}, but {source} takes {dtype} "
                f"{expected}; prepare them as the file's preprocessing says"
            )
    return Batches(wanted.name, batches)


def _only_used_domains(model: onnx.ModelProto) -> None:
    """Other runtimes need not know the domains that the tools list and no node uses."""
    used = {node.domain for node in model.graph.node}
    imports = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _cannot(source: Path, reason: str) -> UserError:
    return UserError(
        f"onnxruntime {onnxruntime.__version__} cannot quantize {source}: {reason}; "
        "`int8: null` exports the float file alone"
    )

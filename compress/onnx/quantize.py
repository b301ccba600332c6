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
    FLAVOURS,
    LARGEST_SAFE_WEIGHT,
    CalibrationReader,
    count_layers,
    largest_weight,
    run_quantizer,
)

LEAVE_OUT = ("first", "last")
LEAST_OPSET = 19
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


@dataclass(frozen=True)
class QuantizationInfo:
    """Settings and counts of a quantization, and the size of the int8 file."""

    calibration: str
    calibration_images: int
    layers: int  # convolutions and matrix products
    quantized_layers: int  # those of them whose weights are int8
    full_range: bool  # weights of 8 bits instead of 7
    flavour: str
    leave_out: tuple[str | int, ...]  # layers that stayed float
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "leave_out": list(self.leave_out)}


def quantize_onnx(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[Any]],
    *,
    method: str = "minmax",
    leave_out: Sequence[str | int] = (),
    full_range: bool = False,
    flavour: str = "cpu",
) -> QuantizationInfo:
    """Quantize `source` to int8 weights and activations; write `target` in one step.

    Deterministic: the same file, images and versions give the same bytes. The metadata of
    `source` (class names, preprocessing, fingerprint) are kept.

    Args:
        source: a float ONNX file with one input.
        calibration: batches of training images as `source` takes them: float32 (N, C, H, W),
            normalised, or uint8 (N, H, W, C). All are held in memory.
        method: estimates the range of each activation; a key of `CALIBRATIONS`.
        leave_out: layers that stay float: `first`, `last`, or numbers in the graph's order from 1,
            with what lies between these.
        full_range: weights of 8 bits, right only where 8-bit products do not saturate (VNNI, ARM
            dot product); of 7 bits otherwise, right on every CPU.
        flavour: what the file is made for; a key of `FLAVOURS`.

    Raises:
        UserError: no images or images of another kind, a file that is not ONNX, or a network
            that the tools cannot quantize; `target` is then as it was before.
    """
    _check_names([method], tuple(CALIBRATIONS))
    _check_names([place for place in leave_out if isinstance(place, str)], LEAVE_OUT)
    _check_names([flavour], tuple(FLAVOURS))
    batches = _check_images(source, calibration)
    with tempfile.TemporaryDirectory(prefix="quantize.") as folder:
        try:
            model = run_quantizer(
                source,
                Path(folder),
                batches,
                method=method,
                leave_out=leave_out,
                full_range=full_range,
                flavour=flavour,
            )
            _drop_unused_domains(model)
            _raise_opset(model)
        except Exception as error:  # the quantizer's errors have no common base
            reason = " ".join(str(error).replace(folder, "").split()) or type(error).__name__
            raise _refusal(source, reason) from error
    layers, quantized = count_layers(model.graph)
    if not quantized:
        raise _refusal(source, f"none of its {layers} layers has weights that can become int8")
    if not full_range:
        _require_safe_weights(source, model)
    if unsuitable := FLAVOURS[flavour].list_unsuitable(model.graph):
        raise _refusal(source, f"flavour {flavour}: it made {', '.join(unsuitable)}")
    metadata = onnx.load(source, load_external_data=False).metadata_props
    _, size = write_model(model, target, {entry.key: entry.value for entry in metadata})
    return QuantizationInfo(
        calibration=method,
        calibration_images=sum(len(batch) for batch in batches.batches),
        layers=layers,
        quantized_layers=quantized,
        full_range=full_range,
        flavour=flavour,
        leave_out=tuple(leave_out),
        size_bytes=size,
    )


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"'{name}' is none of {', '.join(known)} (int8){nearest(name, known)}")


def _require_safe_weights(source: Path, model: onnx.ModelProto) -> None:
    """Refuse weights whose products saturate on some CPUs."""
    largest = largest_weight(model.graph)
    if largest > LARGEST_SAFE_WEIGHT:
        raise _refusal(
            source,
            f"it made weights of up to {largest} where {LARGEST_SAFE_WEIGHT} is the most whose "
            "products do not saturate on x86 CPUs before VNNI",
        )


def _check_images(source: Path, calibration: Iterable[NDArray[Any]]) -> CalibrationReader:
    """Check that every batch fits the file's input."""
    expected = open_session(source).get_inputs()[0]
    dtype = _DTYPES.get(expected.type, expected.type)
    batches = [batch for batch in calibration if len(batch)]
    if not batches:
        raise UserError(
            f"there are no calibration images to quantize {source} with; give some of the "
            "training split (512 are usual)"
        )
    for batch in batches:
        fits = batch.ndim == len(expected.shape) and all(
            actual == size or not isinstance(size, int)
            for actual, size in zip(batch.shape[1:], expected.shape[1:], strict=True)
        )
        if not fits or batch.dtype.name != dtype:
            shapes = [" x ".join(map(str, shape)) for shape in (batch.shape, expected.shape)]
            raise UserError(
                f"calibration images are {batch.dtype.name} {shapes[0]}, but {source} takes "
                f"{dtype} {shapes[1]}; prepare them as the file's preprocessing says"
            )
    return CalibrationReader(expected.name, batches)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Drop domains that no node uses, as other runtimes may not know them."""
    used = {node.domain for node in model.graph.node}
    imports = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _raise_opset(model: onnx.ModelProto) -> None:
    """Ask for opset 19 at least: ONNX's own reference knows DequantizeLinear from there on.

    From 18 to 19 operators took more types and attributes, none another meaning.
    """
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx") and item.version == 18:
            item.version = LEAST_OPSET


def _refusal(source: Path, reason: str) -> UserError:
    return UserError(
        f"onnxruntime {onnxruntime.__version__} cannot quantize {source}: {reason}; "
        "`int8: null` exports the float file alone"
    )

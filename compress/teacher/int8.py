"""A frozen teacher in 8-bit integers: its taps computed by ONNX Runtime on the CPU.

Weights of 7 bits per output channel, activations between layers in 256 steps, batch norm folded,
nothing run past the last wanted tap. The taps differ from the float network's;
`compress.teacher.inference.measure_tap_differences` tells by how much.

Seven bits on every CPU, though one with VNNI could take 8: the targets are then the same wherever a
run is resumed, and 7 bits cost little (benchmarks/results/bundles.md).
"""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import UserError
from compress.onnx.files import open_session, write_model
from compress.onnx.graphs import INPUT, translate
from compress.onnx.quantize import QuantizationInfo, quantize_onnx
from compress.taps import Taps, TapSpecs
from compress.taps.graph import TappedGraph, Untraceable
from compress.taps.tapped import TapReader

_FLOAT, _INT8 = "teacher.onnx", "teacher.int8.onnx"
_OPSET = 18


class Int8Teacher:
    """Normalised images (N, 3, H, W) -> taps in float32, any N; made by `int8_teacher`."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        read: TapReader,
        info: QuantizationInfo,
        *,
        name: str,
    ) -> None:
        """Run `session`, whose first outputs are those that `read` takes."""
        self.info = info
        self._session = session
        self._names = [output.name for output in session.get_outputs()][: read.count]
        self._read = read
        self._name = name

    def __call__(self, images: Tensor) -> Taps:
        """Compute the taps of images on the CPU."""
        pixels: NDArray[Any] = images.detach().contiguous().numpy()
        outputs = self._session.run(self._names, {INPUT: pixels})
        return self._read([torch.from_numpy(output) for output in outputs])

    def compiled_rows(self) -> None:
        """See `compress.teacher.ensemble.TeacherNetwork`; ONNX Runtime takes any number at once."""

    def notes(self) -> list[str]:
        """A sentence on what was done to the network."""
        info = self.info
        return [
            f"{self._name}: {info.quantized_layers} of {info.layers} layers are int8 with 7-bit "
            f"weights ({info.calibration} over {info.calibration_images} images), run by ONNX "
            "Runtime"
        ]


def int8_teacher(
    network: nn.Module,
    specs: TapSpecs,
    wanted: Sequence[str],
    calibration: Iterable[Tensor],
    *,
    folder: Path | None = None,
    method: str = "minmax",
    name: str = "teacher",
) -> Int8Teacher:
    """Quantise `network` in eval mode for the wanted taps; `network` stays as it is.

    Deterministic: the same weights, images and versions give the same taps.

    Args:
        wanted: kinds or dotted module paths, as `Tapped` takes them.
        calibration: batches of normalised training images (N, 3, H, W), seen as the teacher will
            see them; all are held in memory.
        folder: keeps the float and the int8 file (default: neither is kept).
        method: as `compress.onnx.quantize.quantize_onnx` takes it.
        name: what notes call it.

    Raises:
        UserError: the network is not on the CPU, cannot be expressed in ONNX or quantised, has no
            wanted place, or there are no calibration images.
    """
    _require_cpu(network)
    batches = [batch.detach().cpu().contiguous().numpy() for batch in calibration]
    if not batches:
        raise UserError("an int8 teacher needs calibration images; give some of the training split")
    try:
        tapped = TappedGraph(copy.deepcopy(network).eval(), specs, wanted)
    except Untraceable as reason:
        raise UserError(f"{name} cannot be made int8: {reason}") from None
    model = _translate(tapped, batches[0].shape)
    with _place(folder) as place:
        source, target = Path(place) / _FLOAT, Path(place) / _INT8
        write_model(model, source, {})
        info = quantize_onnx(source, target, batches, method=method)
        # Threads that wait asleep: between two batches the student needs the cores.
        session = open_session(target, spin=False)
    return Int8Teacher(session, tapped.read, info, name=name)


def _require_cpu(network: nn.Module) -> None:
    device = next((tensor.device.type for tensor in network.state_dict().values()), "cpu")
    if device != "cpu":
        raise UserError(
            f"an int8 teacher runs on the CPU alone, this one is on {device}; "
            "take precision bfloat16 there"
        )


def _translate(tapped: TappedGraph, batch_shape: Sequence[int]) -> onnx.ModelProto:
    """The taps of a network as an ONNX model for any number of images (N, C, H, W)."""
    _, channels, height, width = batch_shape
    # The other outputs get names of the exporter's choice; their order stays.
    model = translate(
        tapped.graph,
        input_shape=(channels, height, width),
        output="taps",
        dynamic={0: "batch"},
        opset=_OPSET,
    )
    _keep_ranges(model.graph)
    return model


def _keep_ranges(graph: onnx.GraphProto) -> None:
    """Let outputs that a ReLU reads keep their negative values.

    The tools give the input of a Relu or Clip the range of its output where no other node reads
    it, a tap or not. The other node is here a Shape, an output that nobody asks for.
    """
    for output in list(graph.output):
        readers = [node.op_type for node in graph.node if output.name in node.input]
        if readers in (["Relu"], ["Clip"]):
            name = f"{output.name}_shape"
            rank = len(output.type.tensor_type.shape.dim)
            graph.node.append(onnx.helper.make_node("Shape", [output.name], [name]))
            info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [rank])
            graph.output.append(info)


def _place(folder: Path | None) -> AbstractContextManager[str | Path]:
    if folder is None:
        return tempfile.TemporaryDirectory(prefix="int8.")
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(folder)

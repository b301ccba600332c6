"""Run ONNX Runtime's static quantization with the settings that measured best.

The form is QDQ: QuantizeLinear and DequantizeLinear around ordinary operators, which any runtime
can execute. Measured on a resnet8x4, one thread, on a CPU with AVX512-VNNI:

* Activations uint8, weights int8 per output channel: 0.8 ms. With int8 activations ONNX Runtime
  turns only part of the network into integer kernels: 2.0 ms. With uint8 weights: 2.6 ms.
* Asymmetric activations: ReLU then vanishes into the range of the convolution before it (symmetric
  ones cost 0.2 ms more).
* Weights of 7 bits (-64 to 64): x86 CPUs before VNNI add two products uint8 x int8 in 16 bits that
  saturate, and 255 x (64 + 64) = 32,640 still fits. Full range costs up to a third of the largest
  logit there; what 7 bits cost is in benchmarks/results/bundles.md.
* Logits stay float: in 256 steps they tie, and the class changes in 1.5 % more of the images.
* Operators before the first layer (normalisation of raw pixels) stay float.

That is the flavour `cpu`; `tensorrt` is described in `compress.onnx.tensorrt`.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.onnx import tensorrt
from compress.onnx.files import open_session
from compress.onnx.graphs import LAYERS

CALIBRATIONS: Mapping[str, tuple[CalibrationMethod, Mapping[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    # With its fixed few bins it chooses between the first batch's range and the whole.
    "entropy": (CalibrationMethod.Entropy, {}),
    "percentile": (
        CalibrationMethod.Percentile,
        {"CalibPercentile": 99.99, "CalibTensorRangeSymmetric": False},
    ),
}
# The largest weight whose products no kernel saturates: 255 * (64 + 64) <= 32,767.
LARGEST_SAFE_WEIGHT = 64
# Softmax, normalisations and gates (Sigmoid, Where) stay float: they lose most and gain least.
_OPERATORS = (
    *LAYERS,
    *("Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"),
    *("Split", "Slice", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
_OPTIONS = {
    "MatMulConstBOnly": True,  # attention multiplies two activations
    # One batch at a time; otherwise every activation of every image is held in memory.
    "CalibStridedMinMax": 1,
}


def _none(graph: onnx.GraphProto) -> list[str]:
    return []


@dataclass(frozen=True)
class Flavour:
    """Form of the files that are made for one kind of runtime.

    `activation` is the type of its activations, `operators` are quantized with ONNX Runtime's
    `options`, without the nodes that `excluded` names. `finish` changes the quantized graph, and
    `list_unsuitable` has a clause for each kind of node that the flavour must not hold.
    """

    activation: QuantType
    operators: Sequence[str]
    options: Mapping[str, Any]
    excluded: Callable[[onnx.GraphProto], list[str]] = _none
    finish: Callable[[onnx.GraphProto], object] = _none
    list_unsuitable: Callable[[onnx.GraphProto], list[str]] = _none


FLAVOURS: Mapping[str, Flavour] = {
    "cpu": Flavour(
        QuantType.QUInt8,
        _OPERATORS,
        {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    ),
    "tensorrt": Flavour(
        QuantType.QInt8,
        tensorrt.OPERATORS,
        tensorrt.OPTIONS,
        tensorrt.constant_additions,
        tensorrt.free_main_branches,
        tensorrt.list_unsuitable,
    ),
}


class CalibrationReader:
    """Batches with the methods of `CalibrationDataReader`; the quantizer reads them in ranges."""

    def __init__(self, name: str, batches: Sequence[NDArray[Any]]) -> None:
        self.name = name
        self.batches = batches
        self.left: Iterator[NDArray[Any]] = iter(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with the batches from `start_index` up to `end_index`."""
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch by the input's name, None after the last."""
        batch = next(self.left, None)
        return None if batch is None else {self.name: batch}


_PREPARED = "prepared.onnx"


def _prepare(source: Path, folder: Path) -> onnx.ModelProto:
    """Optimise `source` as the quantizer wants it, into `folder`; name each of its nodes."""
    graph = onnx.load(source, load_external_data=False).graph
    with _quiet():
        # Its symbolic shapes know no arithmetic on sizes, and raise.
        quant_pre_process(
            str(source), str(folder / _PREPARED), skip_symbolic_shape=_has_free_sides(graph)
        )
    model = onnx.load(folder / _PREPARED)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"  # nodes are excluded by name
    onnx.save(model, folder / _PREPARED)
    return model


def run_quantizer(
    source: Path,
    folder: Path,
    batches: CalibrationReader,
    *,
    method: str,
    leave_out: Sequence[str | int],
    full_range: bool,
    flavour: str,
) -> onnx.ModelProto:
    """Quantize `source`; works in `folder` alone and raises whatever ONNX Runtime raises."""
    form = FLAVOURS[flavour]
    result = folder / "int8.onnx"
    calibrate_method, method_options = CALIBRATIONS[method]
    graph = _prepare(source, folder).graph
    excluded = _float_nodes(graph, leave_out) + form.excluded(graph)
    with _quiet():
        quantize_static(
            str(folder / _PREPARED),
            str(result),
            batches,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(form.operators),
            nodes_to_exclude=excluded,
            per_channel=True,
            reduce_range=not full_range,
            activation_type=form.activation,
            weight_type=QuantType.QInt8,
            calibrate_method=calibrate_method,
            extra_options={**_OPTIONS, **form.options, **method_options},
        )
    quantized = onnx.load(result)
    form.finish(quantized.graph)
    onnx.save(quantized, result)
    open_session(result)
    return quantized


def _has_free_sides(graph: onnx.GraphProto) -> bool:
    """True if images may have any height and width, not only any number."""
    sides = graph.input[0].type.tensor_type.shape.dim[1:]
    return any(side.dim_param for side in sides)


def _size_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on nothing but sizes: what pooling to cells, for one, multiplies by."""
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    sizes: set[str] = set()
    for node in graph.node:
        if node.op_type == "Constant":
            fixed.update(node.output)
        elif node.op_type == "Shape" or (
            not sizes.isdisjoint(node.input) and sizes.union(fixed).issuperset(node.input)
        ):
            sizes.update(node.output)
    return sizes


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The layers in the graph's order, without products whose factor comes of sizes alone."""
    sizes = _size_tensors(graph)
    nodes = (node for node in graph.node if node.op_type in LAYERS)
    return [node for node in nodes if sizes.isdisjoint(node.input)]


def count_layers(graph: onnx.GraphProto) -> tuple[int, int]:
    """Numbers of layers, and of layers with int8 weights."""
    stored = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    dequantized = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    layers = _layers(graph)
    return len(layers), sum(not dequantized.isdisjoint(node.input) for node in layers)


def largest_weight(graph: onnx.GraphProto) -> int:
    """The largest absolute value of all int8 weights; 0 where there are none."""
    stored = (t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8)
    values = (onnx.numpy_helper.to_array(tensor).astype(np.int16) for tensor in stored)
    return max((int(np.abs(v).max()) for v in values if v.size), default=0)


def _float_nodes(graph: onnx.GraphProto, leave_out: Sequence[str | int]) -> list[str]:
    """Names of the nodes before the first layers, and of the layers in `leave_out`.

    What lies between layers that are left out by number is left out, too. Where images have any
    height and width, so is all that computes with sizes or reads such a number: in 256 steps cells
    would have other edges, and logits enlarged to the image would tie.

    Raises:
        ValueError: the graph has no layer of a number in `leave_out`.
    """
    after: set[str] = set()  # tensors that depend on a layer's output
    names = []
    for node in graph.node:
        if node.op_type in LAYERS or not after.isdisjoint(node.input):
            after.update(node.output)
        else:
            names.append(node.name)
    if _has_free_sides(graph):
        sizes = _size_tensors(graph)
        known = set(names)
        names += [
            node.name
            for node in graph.node
            if node.name not in known and not sizes.isdisjoint((*node.input, *node.output))
        ]
    layers = [node.name for node in _layers(graph)]
    places: dict[str | int, list[str]] = {i: [name] for i, name in enumerate(layers, start=1)}
    places |= {"first": layers[:1], "last": layers[-1:]}
    for place in leave_out:
        if place not in places:
            raise ValueError(f"leave_out names layer {place}, the network has {len(layers)}")
    numbered = {name for place in leave_out if isinstance(place, int) for name in places[place]}
    names += [name for place in leave_out for name in places[place]]
    return names + _enclosed(graph, numbered)


def _enclosed(graph: onnx.GraphProto, layers: set[str]) -> list[str]:
    """Names of the other nodes whose nearest layers, before and behind, are all in `layers`."""
    before: dict[str, set[str]] = {}  # tensor -> the layers that it comes from
    for node in graph.node:
        own = {node.name} if node.op_type in LAYERS else _union(before, node.input)
        before.update(dict.fromkeys(node.output, own))
    behind: dict[str, set[str]] = {}  # tensor -> the layers that read it
    for node in reversed(graph.node):
        own = {node.name} if node.op_type in LAYERS else _union(behind, node.output)
        for name in node.input:
            behind[name] = behind.get(name, set()) | own
    return [
        node.name
        for node in graph.node
        if node.op_type not in LAYERS
        and set() < _union(before, node.input) <= layers
        and set() < _union(behind, node.output) <= layers
    ]


def _union(sets: Mapping[str, set[str]], names: Iterable[str]) -> set[str]:
    return set().union(*(sets.get(name, set()) for name in names))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's progress and advice, part of which goes to the root logger."""
    root, own = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    level, idle = own.level, logging.NullHandler()

    def is_foreign(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in Path(record.pathname).parts

    own.setLevel(logging.CRITICAL + 1)
    root.addFilter(is_foreign)
    root.addHandler(idle)  # without any, logging's own functions would install one for good
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeHandler(idle)
        root.removeFilter(is_foreign)
        own.setLevel(level)

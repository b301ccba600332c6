"""The form of quantized graphs that TensorRT builds int8 engines from.

Facts, from NVIDIA's pages "Working with Quantized Types" and "Explicit Quantization" (TensorRT
11), onnx-tensorrt's docs/operators.md, and issues onnxruntime#14229 and onnx-tensorrt#850:

* Quantization is symmetric: every zero point is 0, every quantized type int8. Activations have one
  scale, weights one per output channel. A DequantizeLinear of an int32 bias is refused, so that
  biases stay float.
* Inputs of weighted layers are quantized, their outputs are not: the layer is fused with what
  follows. Of a residual addition only the branch that is carried over is quantized, so that the
  addition is fused into the convolution that ends the other branch.
* All other operators are left to TensorRT, which moves Q and DQ past those that commute with them.

Nothing here runs TensorRT: what it makes of a file, and how fast, is not known here.
"""

from collections import Counter

import onnx
from onnx import TensorProto

from compress.onnx.graphs import LAYERS

OPERATORS = (*LAYERS, "Add")
OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
    "OpTypesToExcludeOutputQuantization": list(OPERATORS),
}
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def constant_additions(graph: onnx.GraphProto) -> list[str]:
    """Names of the additions of a constant, which are no residual ones and stay float."""
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Add" and not constants.isdisjoint(node.input)
    ]


def free_main_branches(graph: onnx.GraphProto) -> int:
    """Take Q and DQ off the branch of each residual addition that ends in a layer, in place.

    Where both branches end in a layer, it is the later one in the graph; where a layer's output is
    read elsewhere too, it cannot be fused, and its Q and DQ stay.

    Returns:
        The number of additions that were changed.
    """
    made = {output: node for node in graph.node for output in node.output}
    places = {output: i for i, node in enumerate(graph.node) for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    removed: set[str] = set()
    changed = 0
    for node in graph.node:
        pairs = [_pair(made, name) for name in node.input]
        if node.op_type != "Add" or None in pairs:
            continue
        sources = [pair[0].input[0] for pair in pairs if pair is not None]
        fused = [
            source
            for source in sources
            if source in made and made[source].op_type in LAYERS and readers[source] == 1
        ]
        if fused:
            source = max(fused, key=lambda name: places[name])
            index = sources.index(source)
            removed |= {one.name for one in pairs[index] or ()}
            node.input[index] = source
            changed += 1
    kept = [node for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _pair(
    made: dict[str, onnx.NodeProto], name: str
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The QuantizeLinear and DequantizeLinear that a tensor comes from."""
    last = made.get(name)
    first = made.get(last.input[0]) if last is not None and last.op_type == _QUANTIZING[1] else None
    if last is None or first is None or first.op_type != _QUANTIZING[0]:
        return None
    return first, last


def list_unsuitable(graph: onnx.GraphProto) -> list[str]:
    """A clause for each kind of node that TensorRT refuses, none for a file that suits it."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    other, shifted = 0, 0
    for node in graph.node:
        if node.op_type not in _QUANTIZING:
            continue
        # Without a zero point the type is uint8.
        zero = tensors.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8:
            other += 1
        elif onnx.numpy_helper.to_array(zero).any():
            shifted += 1
    clauses = {"of another type than int8": other, "with a zero point that is not 0": shifted}
    return [f"{count} Q or DQ {what}" for what, count in clauses.items() if count]

"""The flavour for TensorRT: what its documentation asks of a graph, node by node."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compress.errors import UserError
from compress.onnx import quantize_onnx
from compress.onnx.qdq import largest_weight
from compress.onnx.tensorrt import free_main_branches, list_unsuitable
from tests.export.quantizing import batches, settled, write
from tests.export.test_quantize import relative_error
from tests.export.tracing import traced_exports


@pytest.fixture(scope="module", params=["resnet8", "mobilenetv2"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network's float file and its int8 file."""
    folder = tmp_path_factory.mktemp(request.param)
    with traced_exports():
        write(settled(request.param), folder / "float.onnx")
    quantize_onnx(folder / "float.onnx", folder / "int8.onnx", batches(), flavour="tensorrt")
    return folder


def test_every_scale_is_symmetric_and_every_quantized_type_int8(files: Path) -> None:
    graph = onnx.load(files / "int8.onnx").graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(found) > 20
    for node in found:
        zero_point = tensors[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    stored = {t.data_type for t in graph.initializer if t.data_type != TensorProto.INT64}
    assert stored == {TensorProto.FLOAT, TensorProto.INT8}, "no int32 bias"
    assert list_unsuitable(graph) == []


def test_layers_read_quantized_inputs_and_write_float_outputs(files: Path) -> None:
    graph = onnx.load(files / "int8.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for layer in layers:
        activation, weight = (made[name] for name in layer.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert tensors[activation.input[1]].size == 1
        scales = tensors[weight.input[1]]
        assert tensors[weight.input[0]].shape[weight.attribute[0].i] == len(scales) > 1
        assert tensors[layer.input[2]].dtype == np.float32
        assert readers[activation.output[0]] == 1, "a Q and DQ of its own"


def test_an_addition_is_fused_into_the_layer_before_it(files: Path) -> None:
    graph = onnx.load(files / "int8.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    additions = [node for node in graph.node if node.op_type == "Add"]
    assert additions
    for node in additions:
        kinds = {made[name].op_type for name in node.input}
        assert kinds == {"Conv", "DequantizeLinear"}
    assert free_main_branches(graph) == 0, "nothing is left to be done"


def test_its_numbers_are_near_the_float_files(files: Path) -> None:
    error = relative_error(files / "float.onnx", files / "int8.onnx", batches(1, 1)[0])
    # Blank networks of many layers have logits that hardly differ.
    assert 0 < error < (0.2 if "resnet" in files.name else 1.0)
    assert largest_weight(onnx.load(files / "int8.onnx").graph) <= 64


def test_a_file_for_cpus_is_none_for_tensorrt(files: Path, tmp_path: Path) -> None:
    quantize_onnx(files / "float.onnx", tmp_path / "cpu.onnx", batches(count=1))
    (clause,) = list_unsuitable(onnx.load(tmp_path / "cpu.onnx").graph)
    assert "of another type than int8" in clause
    graph = onnx.load(files / "int8.onnx").graph
    zero = next(t for t in graph.initializer if t.name.endswith("zero_point"))
    moved = onnx.numpy_helper.to_array(zero) + np.int8(1)
    zero.CopyFrom(onnx.numpy_helper.from_array(moved, zero.name))
    (clause,) = list_unsuitable(graph)
    assert "zero point that is not 0" in clause


def test_an_unknown_flavour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tensorrt'"):
        quantize_onnx(tmp_path / "x.onnx", tmp_path / "y.onnx", [], flavour="tensort")

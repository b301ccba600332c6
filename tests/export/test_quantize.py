"""The int8 file: near the float one, small, alone, described, and deterministic."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.onnx import INPUT, open_session, quantize_onnx, run_session
from compress.onnx.qdq import largest_weight
from tests.export.quantizing import Array, batches, settled, write
from tests.export.tracing import traced_exports
from tests.processes import run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(settled("resnet8"), tmp_path_factory.mktemp("float") / "student.onnx")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(settled("resnet8x4"), tmp_path_factory.mktemp("wide") / "student.onnx")


def operators(path: Path, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime executes after its optimisation for this machine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    return Counter(node.op_type for node in graph.node)


def relative_error(first: Path, second: Path, images: Array) -> float:
    """Mean difference of the logits in their standard deviations."""
    one, two = (run_session(open_session(path), images) for path in (first, second))
    return float(np.abs(one - two).mean() / one.std())


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_near_float_on_images_it_was_not_calibrated_on(
    source: Path, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "int8.onnx"
    info = quantize_onnx(source, path, iter(batches()), method=method)
    assert 0 < relative_error(source, path, batches(1, 1)[0]) < 0.2
    assert info.as_dict() == {
        "calibration": method,
        "calibration_images": 24,
        "layers": 10,
        "quantized_layers": 10,
        "full_range": False,
        "flavour": "cpu",
        "leave_out": [],
        "size_bytes": path.stat().st_size,
    }


@pytest.mark.parametrize(("name", "expected"), [("resnet8", 10), ("mobilenetv2", 54)])
def test_no_pair_of_products_saturates_in_16_bits(tmp_path: Path, name: str, expected: int) -> None:
    path = tmp_path / "int8.onnx"
    with traced_exports():
        float_file = write(settled(name), tmp_path / "float.onnx")
    quantize_onnx(float_file, path, batches(count=1))
    graph = onnx.load(path).graph
    made = {output: node for node in graph.node for output in node.output}
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    layers = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            activation, weight = (made[one] for one in node.input[:2])
            assert tensors[activation.input[2]].dtype == np.uint8
            stored = tensors[weight.input[0]]
            assert stored.dtype == np.int8
            layers += 1
            # Any two weights may be added: which are neighbours is the kernel's affair.
            assert 255 * 2 * int(np.abs(stored.astype(int)).max()) <= 32_767
    assert layers == expected


def test_kernels_of_this_machine_compute_what_the_file_says(wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize_onnx(wide, path, batches())
    images = batches(1, 1)[0]
    found = run_session(open_session(path), images)
    exact = run_session(open_session(path, exact=True), images)
    # Rounding moves an activation by one step here and there; saturation moves logits by a third.
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


def test_full_range_is_for_those_who_ask(source: Path, tmp_path: Path) -> None:
    info = quantize_onnx(source, tmp_path / "full.onnx", batches(), full_range=True)
    assert info.full_range
    assert largest_weight(onnx.load(tmp_path / "full.onnx").graph) == 127


def test_resnet8x4_is_a_quarter_and_runs_in_integers(wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize_onnx(wide, path, batches())
    assert path.stat().st_size <= 0.27 * wide.stat().st_size
    executed = operators(path, tmp_path)
    assert executed["QLinearConv"] == 10
    assert executed["QLinearAdd"] == 3
    assert executed["QGemm"] == 1
    assert not executed.keys() & {"Conv", "Add", "Relu", "Gemm"}
    # Pixels and the pooled vector go in; the mean over a map comes between, in float.
    assert (executed["QuantizeLinear"], executed["DequantizeLinear"]) == (2, 1)


def test_the_file_is_alone_checked_and_described_like_the_source(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    quantize_onnx(source, path, batches())
    assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]
    model, original = onnx.load(path), onnx.load(source)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.metadata_props) == list(original.metadata_props)
    assert [(item.domain, item.version) for item in original.opset_import] == [("", 18)]
    # The first that ONNX's own reference runs such files of.
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 19)]
    assert list(model.graph.input) == list(original.graph.input)
    assert list(model.graph.output) == list(original.graph.output)
    assert tempfile.gettempdir().encode() not in path.read_bytes()
    for count in (1, 5):
        assert run_session(open_session(path), batches()[0][:count]).shape == (count, 10)


def test_weights_have_a_scale_per_channel_and_logits_are_float(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    quantize_onnx(source, path, batches())
    graph = onnx.load(path).graph
    tensors = {t.name: t for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for node in layers:
        weights, scales, _ = (tensors[name] for name in made[node.input[1]].input)
        assert weights.data_type == onnx.TensorProto.INT8
        assert scales.dims == weights.dims[:1]
    assert made[graph.output[0].name].op_type == "Gemm"


def test_the_same_input_gives_the_same_bytes_in_another_process(
    source: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.onnx", tmp_path / "there.onnx"
    quantize_onnx(source, here, batches())
    np.save(tmp_path / "images.npy", np.stack(batches()))
    code = (
        "import sys, numpy; from pathlib import Path;"
        "from compress.onnx import quantize_onnx;"
        "a, b, c = sys.argv[1:]; quantize_onnx(Path(a), Path(b), list(numpy.load(c)))"
    )
    arguments = [str(source), str(there), str(tmp_path / "images.npy")]
    exit_code, printed = run(["-c", code, *arguments], tmp_path / "output.txt")
    assert exit_code == 0, printed
    assert here.read_bytes() == there.read_bytes()


def test_raw_pixels_are_normalised_in_float(tmp_path: Path) -> None:
    raw, path = write(settled("resnet8"), tmp_path / "raw.onnx", raw_pixels=True), tmp_path / "8"
    floats = [np.clip(b.transpose(0, 2, 3, 1) * 64 + 128, 0, 255) for b in batches()]
    pixels = [b.astype(np.uint8) for b in floats]
    quantize_onnx(raw, path, pixels)
    made = {output: node for node in onnx.load(path).graph.node for output in node.output}
    node = next(n for n in made.values() if n.op_type == "Conv")
    before = []
    while INPUT not in node.input:
        node = made[node.input[0]]
        before.append(node.op_type)
    assert before[:2] == ["DequantizeLinear", "QuantizeLinear"]
    assert not {"DequantizeLinear", "QuantizeLinear", "Conv"} & set(before[2:])
    assert {"Transpose", "Cast"} <= set(before)
    assert 0 < relative_error(raw, path, pixels[0]) < 0.2


def test_a_source_whose_tensors_are_apart(source: Path, tmp_path: Path) -> None:
    apart = write(settled("resnet8"), tmp_path / "apart.onnx", embed_up_to=10)
    assert (tmp_path / "apart.onnx.data").is_file()
    (tmp_path / "alone").mkdir()
    info = quantize_onnx(apart, tmp_path / "alone" / "int8.onnx", batches())
    path = tmp_path / "alone" / "int8.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["int8.onnx"]
    assert info.size_bytes == path.stat().st_size
    assert relative_error(apart, path, batches()[0]) < 0.2


@pytest.mark.parametrize(("place", "kept"), [("first", "Conv"), ("last", "Gemm")])
def test_a_layer_that_is_left_out_stays_float(
    source: Path, tmp_path: Path, place: str, kept: str
) -> None:
    path = tmp_path / "int8.onnx"
    info = quantize_onnx(source, path, batches(), leave_out=[place])
    assert (info.layers, info.quantized_layers) == (10, 9)
    assert operators(path, tmp_path)[kept] == 1


def test_layers_are_left_out_by_their_number(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    info = quantize_onnx(source, path, batches(count=1), leave_out=[3, 10])
    graph = onnx.load(path).graph
    stored = {t.name for t in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    floats = [i for i, node in enumerate(layers, start=1) if node.input[1] in stored]
    assert floats == [3, 10]
    assert (info.quantized_layers, info.leave_out) == (8, (3, 10))

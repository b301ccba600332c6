"""What quantization refuses, in words, and that it leaves nothing behind."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from compress.errors import UserError
from compress.onnx import qdq, quantize_onnx
from tests.export.quantizing import Array, batches, settled, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(settled("resnet8"), tmp_path_factory.mktemp("float") / "student.onnx")


def test_nothing_is_printed_and_logging_is_as_before(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters), root.level)
    quantize_onnx(source, tmp_path / "int8.onnx", batches(), method="percentile")
    assert capfd.readouterr() == ("", "")
    assert (list(root.handlers), list(root.filters), root.level) == before


def test_mistakes_leave_the_target_alone(source: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "int8.onnx", tmp_path / "text.onnx"
    path.write_text("mine")
    text.write_text("no model")
    good = batches()
    wrong: list[tuple[Path, list[Array], dict[str, Any], str]] = [
        (source, [], {}, "no calibration images"),
        (source, [good[0][:0]], {}, "no calibration images"),
        (source, [*good, good[0][:, :, 1:]], {}, "float32 8 x 3 x 15 x 16.*takes float32"),
        (source, [good[0].astype(np.uint8)], {}, "are uint8 .*prepare them"),
        (source, [good[0][0]], {}, "3 x 16 x 16, but"),
        (text, good, {}, "cannot load"),
        (tmp_path / "none.onnx", good, {}, "not found"),
        (source, good, {"method": "minmx"}, "did you mean 'minmax'"),
        (source, good, {"leave_out": ["frist"]}, "did you mean 'first'"),
        (source, good, {"leave_out": [11]}, "names layer 11, the network has 10"),
    ]
    for given, images, options, message in wrong:
        with pytest.raises(UserError, match=message):
            quantize_onnx(given, path, images, **options)
    assert path.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.onnx", "text.onnx"]


def test_what_the_tools_cannot_do_is_said_in_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such\noperator")

    monkeypatch.setattr("compress.onnx.qdq.quantize_static", fail)
    with pytest.raises(UserError, match=r"cannot quantize .*: no such operator; `int8: null`"):
        quantize_onnx(source, tmp_path / "int8.onnx", batches())
    assert list(tmp_path.iterdir()) == []


def test_tools_that_make_weights_of_8_bits_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = qdq.quantize_static

    def of_8_bits(*given: Any, **options: Any) -> None:
        quantize(*given, **{**options, "reduce_range": False})

    monkeypatch.setattr(qdq, "quantize_static", of_8_bits)
    with pytest.raises(UserError, match="weights of up to 127 where 64 is the most"):
        quantize_onnx(source, tmp_path / "int8.onnx", batches())
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_layers_is_refused(tmp_path: Path) -> None:
    path = write(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.ReLU()), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="none of its 0 layers"):
        quantize_onnx(path, tmp_path / "int8.onnx", batches())

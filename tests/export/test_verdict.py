"""The limits of `export.verify`, on numbers made by hand."""

from export.bundle.int8_gate import Limits
from export.bundle.parity import Parity
from export.verify.comparisons import EncoderRow, Row
from export.verify.verdict import failures, json_rows


def test_the_limits_by_hand() -> None:
    def judged(file: str, drop: float, images: int, apart: float = 0.0) -> list[str]:
        parity = Parity(images, apart, 0.0, 10.0, 96.0, 80.0 - drop, 80.0)
        most = Row("student.onnx", 64, 1, Parity(1000, 0.0, 0.0, 10.0, 100.0, 80.0, 80.0))
        rows = [most, Row(file, 1, 1, parity)]
        return failures(rows, [], tolerance=1e-3, int8=Limits())

    assert not judged("student.int8.onnx", 1.0, 1000, apart=1.0)
    assert len(judged("student.int8.onnx", 1.0, 1000, apart=5.0)) == 1
    assert len(judged("student.int8.onnx", 1.1, 1000)) == 1
    # Three of a hundred images are no proof of anything; four are.
    assert not judged("student.int8.onnx", 3.0, 100)
    assert len(judged("student.int8.onnx", 4.0, 100)) == 1
    assert len(judged("student.int8.onnx", 0.0, 100, apart=float("nan"))) == 1
    assert not judged("student.onnx", 0.0, 100, apart=0.01)
    assert len(judged("student.onnx", 0.0, 100, apart=0.011)) == 1
    assert len(judged("student.onnx", 0.0, 100, apart=float("nan"))) == 1
    maps = [EncoderRow(1, 1, 16, 16, 5, largest, 0.0, 10.0) for largest in (0.01, 0.011)]
    rows = [Row("student.onnx", 64, 1, Parity(1000, 0.0, 0.0, 10.0, 100.0, 80.0, 80.0))]
    (failure,) = failures(rows, maps, tolerance=1e-3, int8=Limits())
    assert failure.startswith("encoder.onnx at 16x16, batch 1 on 1 thread: a feature is off")


def test_what_is_no_number_is_null_in_json() -> None:
    row = EncoderRow(1, 1, 16, 16, 5, float("nan"), 0.5, float("inf"))
    assert {k: v for k, v in json_rows([row])[0].items() if v is None} == dict.fromkeys(
        ["max_abs", "scale"]
    )

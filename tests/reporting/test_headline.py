"""The first screen: from the teacher to the files that ship."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.comparison import paired_interval, write_predictions
from compress.reporting import write_report
from compress.storage.files import read_json, write_json
from compress.storage.integrity import record, seal

Make = Callable[..., Path]
LABELS = np.zeros(300, dtype=np.int32)


def vouch(folder: Path, stage: str, name: str, wrong: range) -> None:
    """Predictions that are wrong on these of 300 images, recorded in the stage's result."""
    path = folder / stage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    top1 = np.where(np.isin(np.arange(300), wrong), 1, 0)
    write_predictions(path, {"labels": LABELS, "top1": top1}, "digest")
    result = read_json(folder / stage / "result.json")
    result["files"] = {**result.get("files", {}), name: record(path)}
    write_json(folder / stage / "result.json", seal(result))


@pytest.fixture
def run(make_run: Make) -> Path:
    """A teacher of 1.2 MB and 1.8 ms, files of 0.3712 and 0.0965 MB and 0.072 and 0.036 ms."""
    folder = make_run()
    result = read_json(folder / "export/result.json")
    result["measured"]["teacher"] = {"size_bytes": 1_200_000}
    timing = {"median_ms": 1.8, "p95_ms": 2.0, "rounds": 20}
    result["measured"]["latency"]["ONNX Runtime, teacher"] = {"1": timing, "64": timing}
    write_json(folder / "export/result.json", result)
    vouch(folder, "teacher", "0/predictions.npz", range(7))
    vouch(folder, "export", "predictions/student.onnx.npz", range(10))
    vouch(folder, "export", "predictions/student.int8.onnx.npz", range(11))
    return folder


def first_screen(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.md").read_text().split("## Accuracy against cost")[0]


def test_what_ships_is_related_to_the_teacher_at_one_protocol(run: Path) -> None:
    rows = [line for line in first_screen(run).splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" *") for cell in row.split("|")[1:-1]] for row in rows[2:]]
    assert [row[0] for row in cells] == [
        "resnet20 (teacher)", "student.onnx (simkd)", "student.int8.onnx (simkd)",
    ]  # fmt: skip
    sizes, times = [row[3:5] for row in cells], [row[5:7] for row in cells]
    dash = "\N{EN DASH}"
    # 1.2 / 0.3712 and 1.2 / 0.0965; 1.8 / 0.072 and 1.8 / 0.036.
    assert sizes == [["1.20", dash], ["0.37", "3.2"], ["0.097", "12.4"]]
    assert times == [["1.80", dash], ["0.072", "25.0"], ["0.036", "50.0"]]
    low, high = (100 * end for end in paired_interval(0, 3, 300))
    minus = "\N{MINUS SIGN}"
    interval = f"({minus}{-low:.2f} to +{high:.2f}), not distinguishable, p = 0.250"
    assert cells[1][2] == f"{minus}1.00 {interval}"


def test_no_number_of_a_network_that_does_not_ship_stands_there(run: Path) -> None:
    """77,850 parameters are those of kd, 2.31 ms torch's, 0.32 MB kd's weights."""
    text = first_screen(run)
    for other in ("77,850", "2.31", "0.32", "41.17"):
        assert other not in text


def test_another_student_than_the_recommended_is_said_first(run: Path) -> None:
    text = first_screen(run)
    assert text.index("Not the recommended student") < text.index("What ships is the student simkd")
    path = run / "export/result.json"
    result: dict[str, Any] = {k: v for k, v in read_json(path).items() if k != "digest"}
    result["values"].update(student="kd", remark=None)
    write_json(path, seal(result))
    text = first_screen(run)
    assert "Not the recommended" not in text and "the recommended student kd" in text


def test_without_an_export_nothing_ships(make_run: Make) -> None:
    text = first_screen(make_run(stages=("teacher", "distill", "account")))
    assert "Nothing ships yet. The export stage has not run." in text
    assert "The recommended student, kd" in text and " ms" not in text and " MB" not in text


def test_a_run_of_before_says_what_is_missing(make_run: Make) -> None:
    folder = make_run()
    text = first_screen(folder)
    assert "The teacher was not timed beside the files; --fresh export does that." in text
    assert (
        json.loads((folder / "report.json").read_text())["values"]["export"]["student"] == "simkd"
    )

"""Differences of networks whose predictions were saved: paired, by class, and without them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.comparison import mcnemar_p_value, paired_interval, write_predictions
from compress.reporting import write_report
from compress.storage.files import read_json, write_json
from compress.storage.integrity import record, seal

Make = Callable[..., Path]
LABELS = np.arange(300) // 100  # three classes of 100 images


def save(folder: Path, stage: str, wrong: set[int], name: str = "predictions.npz") -> None:
    """Predictions that are wrong on these images, vouched for by the stage's result."""
    top1 = np.where([image in wrong for image in range(300)], (LABELS + 1) % 3, LABELS)
    path = folder / stage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, {"labels": LABELS, "top1": top1}, "digest")
    result = read_json(folder / stage / "result.json")
    values = result["values"]
    row = values["teachers"][0] if stage == "teacher" else values
    row["top1_percent"] = 100 * (1 - len(wrong) / 300)
    result["files"] = {name: record(path)}
    write_json(folder / stage / "result.json", seal(result))


@pytest.fixture
def run(make_run: Make) -> Path:
    """One trial each: `none` errs on 40 images, kd on 20 of them, simkd on 24, the teacher on 4."""
    folder = make_run(stages=("teacher", "distill", "account"))
    for path in folder.glob("distill/*-trial1/result.json"):
        path.unlink()
    (folder / "distill/crd-14/result.json").unlink()
    save(folder, "teacher", {0, 100, 200, 201}, "0/predictions.npz")
    save(folder, "distill/none", set(range(40)))
    save(folder, "distill/kd", set(range(20, 40)))
    save(folder, "distill/simkd", {*range(20), *range(200, 204)})
    return folder


def line_of(folder: Path, start: str) -> str:
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    return next(line for line in lines if line.replace("*", "").startswith(f"| {start}"))


def test_students_are_compared_image_by_image(run: Path) -> None:
    """kd gets 20 images right that `none` gets wrong, and loses none; simkd gets 20 and loses 4."""
    low, high = (100 * end for end in paired_interval(20, 4, 300))
    assert f"+5.33 (+{low:.2f} to +{high:.2f})" in line_of(run, "simkd |")
    networks = json.loads((run / "report.json").read_text())["values"]["networks"]
    differences = {row["label"]: row["difference_to_student_alone"] for row in networks}
    assert differences["kd"]["p_value"] == pytest.approx(2 / 2**20)
    assert differences["simkd"]["p_value"] == pytest.approx(mcnemar_p_value(20, 4))
    assert differences["simkd"]["interval_points"] == pytest.approx([low, high])
    assert differences["kd"]["reading"] == differences["simkd"]["reading"] == "higher"
    results = (run / "report.md").read_text().split("## Results")[1].split("## Training")[0]
    assert "exact McNemar test" in results and "unpaired" not in results


def test_classes_that_differ_stand_first(run: Path) -> None:
    """All images that kd and its teacher disagree on but three are of class 0."""
    assert "kd" in line_of(run, "kd (recommended)")
    section = (
        (run / "report.md").read_text().split("against teacher")[1].split("against student")[0]
    )
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[2:]] == ["0", "2", "1"]
    low, high = (100 * end for end in paired_interval(1, 20, 100))
    minus = "\N{MINUS SIGN}"
    assert rows[2][5].strip() == f"{minus}19.00 ({minus}{-low:.2f} to {minus}{-high:.2f})"


def test_without_predictions_test_sets_count_as_independent(run: Path) -> None:
    (run / "distill/kd/predictions.npz").unlink()
    assert "± 2.43 (higher, unpaired)" in line_of(run, "kd (recommended)")
    assert "(lower, p" not in line_of(run, "simkd |") and "higher, p" in line_of(run, "simkd |")
    assert "Differences marked unpaired" in (run / "report.md").read_text()
    content = (run / "distill/simkd/predictions.npz").read_bytes()
    (run / "distill/simkd/predictions.npz").write_bytes(content[:-1] + b"x")  # damaged
    assert "unpaired" in line_of(run, "simkd |")

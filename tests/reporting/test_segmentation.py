"""Students that segment: paired differences of mean IoU, IoU by class, and the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.comparison.predictions import PREDICTIONS, write_predictions
from compress.data.dense.samples import SAMPLES, mask_file, photo_file, truth_file
from compress.reporting import segmentation
from compress.reporting.collect import RunData
from compress.reporting.document import Figure
from compress.reporting.network import Network
from compress.reporting.tables import ReportTable
from compress.tasks.confusion import segmentation_metrics

IMAGES, CLASSES = 30, 3


def confusion(folder: Path, right: float, seed: int) -> float:
    """Save counts of which so large a share is right; return their mean IoU."""
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(
        100,
        (np.eye(CLASSES) * right + (1 - right) / CLASSES).flatten() / CLASSES,
        size=IMAGES,
    ).reshape(IMAGES, CLASSES, CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / PREDICTIONS, {"confusion": counts.astype(np.int32)}, "images")
    return segmentation_metrics(torch.from_numpy(counts.sum(0)))["miou_percent"]


def network(label: str, percents: list[float], *, teacher: bool = False) -> Network:
    trials: tuple[dict[str, Any], ...] = tuple(
        {"label": label, "trial": n, "miou_percent": p, "model": "pspnet"}
        for n, p in enumerate(percents)
    )
    return Network(label, teacher, trials)


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    """A teacher, and two students of three trials."""
    teacher = [confusion(tmp_path / "teacher" / "0", 0.9, 9)]
    kinds = {"none": 0.6, "cwd": 0.7}
    students = [
        network(
            label,
            [
                confusion(tmp_path / "distill" / (f"{label}-trial{n}" if n else label), right, n)
                for n in range(3)
            ],
        )
        for label, right in kinds.items()
    ]
    return RunData(
        tmp_path,
        "run",
        "",
        {"task": "segmentation"},
        {},
        {},
        (network("teacher", teacher, teacher=True),),
        tuple(students),
    )


def test_a_difference_is_the_mean_over_trials_with_an_interval_of_student_t(run: RunData) -> None:
    none, cwd = run.students
    difference = segmentation.minus(run, cwd, none)
    assert difference is not None
    means = [np.mean(row.percents("miou_percent")) for row in (cwd, none)]
    assert difference.points == pytest.approx(means[0] - means[1])
    assert difference.interval is not None
    low, high = difference.interval
    assert low < difference.points < high
    assert difference.p_value is not None
    assert difference.p_value < 0.05
    assert difference.reading == "higher"
    other = segmentation.minus(run, none, cwd)
    assert other is not None
    assert other.points == pytest.approx(-difference.points)
    assert segmentation.minus(run, none, none) is None


def test_one_training_each_is_read_from_the_interval_alone(run: RunData) -> None:
    none, cwd = (replace(row, trials=row.trials[:1]) for row in run.students)
    difference = segmentation.minus(run, cwd, none)
    assert difference is not None
    assert difference.p_value is None
    assert difference.is_paired
    assert difference.reading == "higher"
    against_teacher = segmentation.minus(run, run.teachers[0], run.students[0])
    assert against_teacher is not None
    assert against_teacher.points > 0


def test_without_saved_predictions_there_is_no_difference(run: RunData) -> None:
    (run.folder / "distill" / "cwd-trial2" / PREDICTIONS).unlink()
    assert segmentation.minus(run, run.students[1], run.students[0]) is None


def test_the_section_has_iou_by_class_and_a_picture(run: RunData) -> None:
    (run.folder / "distill" / "none" / "student.json").write_text(
        '{"class_names": ["sky", "road", "car"]}'
    )
    for folder in ("teacher/0", "distill/none", "distill/cwd"):
        place = run.folder / folder / SAMPLES
        place.mkdir()
        for number in (0, 7):
            mask = np.full((20, 30), number % 3, np.uint8)
            Image.fromarray(mask).save(place / mask_file(number))
            if folder == "teacher/0":
                Image.fromarray(mask).save(place / truth_file(number))
                photo = np.zeros((20, 30, 3), np.uint8)
                Image.fromarray(photo).save(place / photo_file(number))
    _, table, _, figure = segmentation.segmentation(run)
    assert isinstance(table, ReportTable)
    assert [row[0] for row in table.rows] == ["sky", "road", "car"]
    shares = [float(str(row[1])) for row in table.rows]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    of_teacher = np.load(run.folder / "teacher/0" / PREDICTIONS)["confusion"].sum(0)
    union = of_teacher[1].sum() + of_teacher[:, 1].sum() - of_teacher[1, 1]
    assert float(str(table.rows[1][2])) == pytest.approx(100 * of_teacher[1, 1] / union, abs=0.006)
    assert isinstance(figure, Figure)
    assert "truth, teacher, none" in figure.images[0].alt
    with Image.open(run.folder / "figures" / "masks.png") as picture:
        assert picture.width > 600

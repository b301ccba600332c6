"""Pictures of a report: trade-off, classes, calibration, predictions; and what is unfinished."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.comparison.predictions import Predictions, prediction_arrays, write_predictions
from compress.reporting import write_report
from compress.reporting.by_class import confusion
from compress.reporting.judged import Judged
from compress.reporting.plots import Point, pareto_front
from compress.storage.files import read_json, write_json
from compress.storage.integrity import record, seal

Make = Callable[..., Path]
IMAGES, CLASSES = 300, 3


class _Images:
    """The test images of a run; the red of each is its number."""

    def __init__(self, digest: str = "images") -> None:
        self._digest = digest

    def digest(self) -> str:
        return self._digest

    def fetch_square(self, indices: Tensor, size: int) -> Tensor:
        return (indices % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)


def save(folder: Path, stage: str, name: str, wrong: set[int], sure: float = 0.9) -> None:
    """Save predictions of a network that errs on some images and is equally sure of all."""
    labels = np.arange(IMAGES) // (IMAGES // CLASSES)
    top1 = np.where(np.isin(np.arange(IMAGES), [*wrong]), (labels + 1) % CLASSES, labels)
    probabilities = np.full((IMAGES, CLASSES), (1 - sure) / (CLASSES - 1))
    probabilities[np.arange(IMAGES), top1] = sure
    path = folder / stage / name
    path.parent.mkdir(exist_ok=True)
    write_predictions(path, prediction_arrays(labels, top1, probabilities), "images")
    result = {k: v for k, v in read_json(folder / stage / "result.json").items() if k != "digest"}
    result.setdefault("files", {})[name] = record(path)
    write_json(folder / stage / "result.json", seal(result))


@pytest.fixture
def run(make_run: Make) -> Path:
    """The teacher errs on images 0 to 3, its only student kd on 2 to 21."""
    folder = make_run(stages=("teacher", "distill", "account"))
    save(folder, "teacher", "0/predictions.npz", {0, 1, 2, 3})
    for path in folder.glob("distill/*-trial1/result.json"):
        path.unlink()
    for label in ("none", "crd-14", "simkd"):
        (folder / "distill" / label / "result.json").unlink()
    save(folder, "distill/kd", "predictions.npz", set(range(2, 22)), sure=0.8)
    return folder


def points(*places: tuple[float, float]) -> list[Point]:
    return [Point(f"{x}", x, y, 0.0, 0) for x, y in places]


def test_the_front_is_what_no_other_beats() -> None:
    found = pareto_front(points((3, 70), (1, 60), (2, 60), (4, 69), (1, 50), (5, 90)))
    assert [(p.x, p.y) for p in found] == [(1, 60), (3, 70), (5, 90)]
    assert pareto_front([]) == []


def test_confusion_counts_true_by_predicted() -> None:
    labels, top1 = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    one = Judged("x", Predictions(labels, top1, "images"), Path("p.npz"), 0)
    assert confusion(one, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert one.accuracy_of(0) == one.accuracy_of(2) == 50


def test_pictures_stand_before_tables_of_settings_which_are_folded(run: Path) -> None:
    page = write_report(run).read_text()
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert heads.index("Accuracy against cost") < heads.index("Results")
    folded = re.findall(r"<summary[^>]*>(.*?)</summary>", page)
    assert {"Trainings", "Accounting", "Definitions", "Recipe", "Environment"} <= {*folded}
    assert not {*heads} & {*folded}
    assert page.count("<details>") == page.count("</details>") == len(folded)
    text = (run / "report.md").read_text()
    assert all(f"## {title}" in text for title in folded), "Markdown folds nothing away"


def test_errors_of_calibration_are_printed(run: Path) -> None:
    write_report(run)
    text = (run / "report.md").read_text()
    # Of 300 images 4 are wrong at 0.9, and 20 at 0.8: 98.67 - 90 and 93.33 - 80, in percent.
    table = text.split("**Expected calibration error")[1].split("\n\n")[1]
    teacher, student = (line.split("|") for line in table.splitlines()[2:])
    assert "resnet" in teacher[1] and "kd" in student[1]
    assert float(teacher[2]) == pytest.approx(98.67 - 90, abs=0.03)
    assert float(student[2]) == pytest.approx(93.33 - 80, abs=0.03)


def test_the_gallery_shows_each_group(run: Path) -> None:
    page = write_report(run, _Images()).read_text()
    gallery = page.split(">Predictions</h2>")[1].split("<h2")[0]
    titles = re.findall(r"<h3>(.*?)</h3>", gallery)
    assert [title.rpartition(": ")[2] for title in titles] == [
        "18 of 300",  # the teacher is right, kd is wrong
        "2 of 300",
        "2 of 300",  # both are wrong
        "278 of 300",
    ]
    assert gallery.count("<img") == 8 + 2 + 2 + 8
    assert all(alt for alt in re.findall(r'<img alt="(.*?)"', gallery))
    assert 'class="wrong"' in gallery and 'class="right"' in gallery


@pytest.mark.parametrize("images", [None, _Images("others")])
def test_without_the_very_images_there_is_no_gallery(run: Path, images: _Images | None) -> None:
    assert "Predictions</h2>" not in write_report(run, images).read_text()


def test_a_run_that_goes_on_says_what_is_missing(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    (folder / "resolved.yaml").write_text(
        "distill: {method: {name: kd}, train: {epochs: 9}, compare: [{name: at}]}\n"
        "fuse: {}\naccount: {}\nexport: null\ntransfer: []\n"
    )
    (folder / "distill/at").mkdir()
    write_json(folder / "distill/at/fields.json", {})
    (folder / "distill/at/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    page = write_report(folder).read_text()
    assert "This run is not finished. distill/at has 2 of 9 epochs." in page
    assert "Still to come: fuse, account." in page


def test_a_finished_run_says_nothing_of_it(make_run: Make) -> None:
    assert "not finished" not in write_report(make_run()).read_text()


def test_a_finished_run_of_a_method_of_ones_own_is_finished(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    (folder / "resolved.yaml").write_text(
        "distill: {method: {name: 'mine.py:KD'}, train: {epochs: 9}}\n"
        "fuse: null\naccount: null\nexport: null\ntransfer: []\n"
    )
    assert "not finished" not in write_report(folder).read_text()

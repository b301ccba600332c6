"""What the teacher, the student that ships and its int8 file said of each test image."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.comparison.predictions import PREDICTIONS, Predictions, read_confidences
from compress.comparison.students import saved_predictions
from compress.reporting.collect import RunData
from compress.reporting.network import Network

INT8 = "student.int8.onnx"


@dataclass(frozen=True)
class Judged:
    """A network or a file with its saved predictions of the test images, of its first trial."""

    title: str
    predictions: Predictions
    path: Path
    style: int  # its place in the order of colours

    @cached_property
    def confidence(self) -> NDArray[np.float64] | None:
        """(N,), the probability of each predicted class, where it was saved."""
        return read_confidences(self.path)

    def accuracy_of(self, label: int) -> float:
        """Percent of the images of a class that are right."""
        of_class: NDArray[Any] = self.predictions.labels == label
        return 100 * float(self.predictions.correct[of_class].mean())


def shipped_student(run: RunData) -> Network | None:
    """The student that ships, else the recommended one."""
    label = run.values("export").get("student")
    return next((row for row in run.students if row.label == label), run.recommended)


def read_judged(run: RunData) -> list[Judged]:
    """The first teacher, the student and its int8 file, those of them whose predictions are saved.

    All are of the same images in the same order.
    """
    entries: list[Judged] = []
    if run.teachers:
        teacher = run.teachers[0]
        entries += _network(teacher, teacher.model, run.folder / "teacher/0", 0)
    student = shipped_student(run)
    if student is not None:
        entries += _network(student, student.title, run.folder / "distill" / student.label, 1)
    name = f"predictions/{INT8}.npz"
    result = run.results.get("export")
    saved = saved_predictions(run.folder / "export", result, name) if result else None
    if saved is not None and student is not None:
        entries.append(Judged(f"{student.label} int8", saved, run.folder / "export" / name, 2))
    return [one for one in entries if one.predictions.of_same_images(entries[0].predictions)]


def _network(network: Network, title: str, folder: Path, style: int) -> list[Judged]:
    saved = network.predictions.get(0)
    return [] if saved is None else [Judged(title, saved, folder / PREDICTIONS, style)]

"""The section on classes: what the student gets right of each, and what it takes them for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from compress.reporting import formats, plots
from compress.reporting.collect import RunData
from compress.reporting.differences import classes
from compress.reporting.document import Block, Figure, Heading, Image
from compress.reporting.drawing import render_png
from compress.reporting.judged import Judged, shipped_student
from compress.reporting.tables import Column, ReportCell, ReportTable

_MOST_CLASSES = 30  # in one plot
_MOST_NAMES = 20  # beside a matrix
_MOST_NUMBERS = 12  # classes of a matrix with numbers in it
_MOST_PAIRS = 10


def accuracy_by_class(run: RunData, judged: list[Judged]) -> list[Block]:
    """Accuracies of teacher and student by class, confusion matrices, confused pairs."""
    if len(judged) < 2:
        return []
    teacher, student = judged[:2]
    names = _names(run, student)
    blocks: list[Block] = [Heading("Accuracy by class"), _accuracies(names, teacher, student)]
    first_teacher = run.teachers[0] if run.teachers else None
    shipped = shipped_student(run)
    blocks.append(_matrices(names, teacher, student))
    return [*blocks, *_confused(names, teacher, student), *classes(run, shipped, first_teacher)]


def against_alone(run: RunData) -> list[Block]:
    """The classes in which the student that ships and the student alone differ most."""
    tables = classes(run, shipped_student(run), run.baseline)
    return [Heading("Classes against the student alone"), *tables] if tables else []


def _names(run: RunData, judged: Judged) -> list[str]:
    count = int(max(judged.predictions.labels.max(), judged.predictions.top1.max())) + 1
    known = run.class_names
    return [known[i] if i < len(known) else str(i) for i in range(max(count, len(known)))]


def _accuracies(names: Sequence[str], teacher: Judged, student: Judged) -> Figure:
    """The classes in which the two differ most, by falling difference."""
    present = np.unique(student.predictions.labels).tolist()
    pairs = {label: (teacher.accuracy_of(label), student.accuracy_of(label)) for label in present}

    def gain(label: int) -> float:
        return pairs[label][1] - pairs[label][0]

    chosen = present
    if len(present) > _MOST_CLASSES:
        chosen = sorted(present, key=lambda label: -abs(gain(label)))[:_MOST_CLASSES]
    chosen = sorted(chosen, key=gain)
    percents = [pairs[label] for label in chosen]
    titles = [teacher.title, student.title]
    plot = plots.by_class([names[label] for label in chosen], percents, titles, salt="by class")
    worst = ", ".join(f"{names[label]} {gain(label):+.1f}" for label in chosen[:3])
    alt = f"Accuracy of each class, {titles[0]} and {titles[1]}. Largest losses in points: {worst}"
    which = "Every class" if len(chosen) == len(present) else "The classes that differ most"
    caption = f"{which}: test images that {titles[0]} and {titles[1]} get right, losses first"
    return Figure([Image("figures/by_class.png", alt, plot.png, plot.svg)], caption)


def confusion(judged: Judged, classes: int) -> NDArray[np.int64]:
    """(K, K), images of the class of the row that were taken for the class of the column."""
    counts: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (judged.predictions.labels, judged.predictions.top1), 1)
    return counts


def _matrices(names: Sequence[str], teacher: Judged, student: Judged) -> Figure:
    images = []
    for place, one in enumerate((teacher, student)):
        png = render_png(_matrix_of(confusion(one, len(names)), names), (4.8, 4.6))
        right = 100 * float(one.predictions.correct.mean())
        alt = f"Confusion matrix of {one.title}: {right:.2f} % lie on the diagonal"
        images.append(Image(f"figures/confusion_{place}.png", alt, png))
    caption = (
        f"Confusion of {teacher.title} (first) and {student.title}: of the images of each true "
        "class (row), the share that was taken for each class (column)"
    )
    return Figure(images, caption, is_halved=True)


def _matrix_of(counts: NDArray[np.int64], names: Sequence[str]) -> Any:
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)

    def draw(figure: Drawing) -> None:
        axes = figure.add_subplot()
        # The square root shows rare mistakes beside the diagonal.
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=10)
        axes.grid(visible=False)
        axes.set_xlabel("Predicted")
        axes.set_ylabel("True")
        if len(names) <= _MOST_NAMES:
            axes.set_xticks(range(len(names)), labels=names, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), labels=names, parse_math=False)
        if len(names) <= _MOST_NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if counts[row, column]:
                    colour = "white" if share > 45 else "black"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour)

    return draw


def _confused(names: Sequence[str], teacher: Judged, student: Judged) -> list[Block]:
    """The mistakes that the student makes most often, and how often the teacher makes them."""
    own, other = (confusion(one, len(names)) for one in (student, teacher))
    mistakes = own - np.diag(np.diag(own))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order]
    rows: list[list[ReportCell | str]] = [
        [
            names[true],
            names[taken],
            formats.count(int(own[true, taken])),
            formats.count(int(other[true, taken])),
            formats.count(int(own[true].sum())),
        ]
        for true, taken in pairs
        if mistakes[true, taken]
    ]
    columns = (
        Column("True class", is_number=False),
        Column("Taken for", is_number=False),
        Column(student.title, "images"),
        Column(teacher.title, "images"),
        Column("Images of the class"),
    )
    title = f"The mistakes that {student.title} makes most often"
    return [ReportTable(columns, rows, title)] if rows else []

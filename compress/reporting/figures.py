"""How every network learned, and the place of each in the order of colours."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from compress.reporting import plots
from compress.reporting.collect import RunData, metrics
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.network import Network


def training_curves(run: RunData) -> list[Block]:
    """Test accuracy and loss per epoch of the teacher and of each student."""
    heading = Heading("Training curves")
    rows = [(place, row, _history(run, row)) for place, row in styled(run)]
    images = []
    for key, title, text in (
        (run.task.metric, f"Test {lower(run.task.title)} (%)", "test accuracy"),
        ("loss", "Training loss", "training loss"),
    ):
        lines = [plots.Curve(row.title, _mean_curve(history, key), p) for p, row, history in rows]
        lines = [line for line in lines if line.points]
        if lines:
            plot = plots.curves(lines, "Epoch", title, salt=key, is_percent=key != "loss")
            alt = f"{text} per epoch of {', '.join(line.label for line in lines)}"
            images.append(Image(f"figures/{key}.png", alt.capitalize(), plot.png, plot.svg))
    if not images:
        return [heading, Paragraph("No training has been recorded in this run directory.")]
    caption = (
        "Test accuracy and training loss per epoch, means over the trials. A loss is the sum of "
        "its method's own terms: losses of different methods cannot be compared."
    )
    return [heading, Figure(images, caption)]


def styled(run: RunData) -> list[tuple[int, Network]]:
    """Every network with its place in the order of colours; the first teacher has the first."""
    first, others = run.teachers[:1], run.teachers[1:]
    return [*enumerate(first), *enumerate((*run.students, *others), 1)]


def _history(run: RunData, row: Network) -> list[list[dict[str, Any]]]:
    """The recorded epochs of each trial."""
    if row.is_teacher:
        place = run.teachers.index(row)
        return [metrics(run.folder / "teacher" / str(place) / "metrics.jsonl")]
    folders = [run.folder / "distill" / _folder(row.label, trial) for trial in row.trials]
    return [metrics(folder / "metrics.jsonl") for folder in folders]


def _folder(label: str, trial: Any) -> str:
    number = int(trial.get("trial", 0))
    return f"{label}-trial{number}" if number else label


def _mean_curve(
    histories: Sequence[Sequence[dict[str, Any]]], key: str
) -> list[tuple[float, float]]:
    """Mean over the trials of every epoch that all trials have recorded."""
    values_at: dict[int, list[float]] = {}
    for row in (row for history in histories for row in history):
        if row.get(key) is not None:
            values_at.setdefault(int(row["epoch"]), []).append(float(row[key]))
    full = sorted(epoch for epoch, values in values_at.items() if len(values) == len(histories))
    return [(float(epoch), mean(values_at[epoch])) for epoch in full]


def lower(title: str) -> str:
    """A title inside of a sentence."""
    return title[:1].lower() + title[1:]

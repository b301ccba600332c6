"""The section on segmentation: IoU by class, and a few test images under their masks."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from torch import Tensor

from compress.comparison.accuracy import AccuracyDifference
from compress.comparison.bootstrap import bootstrap
from compress.comparison.predictions import PREDICTIONS
from compress.data.dense.overlays import BACKGROUND, draw_masks
from compress.data.dense.samples import SAMPLES, mask_file, photo_file, truth_file
from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.network import Network
from compress.reporting.tables import Column, ReportCell, ReportTable
from compress.tasks.confusion import image_metrics, iou_per_class, read_confusion

_PICTURE = "figures/masks.png"
_SEED = 0  # of the images that are drawn again


def minus(run: RunData, first: Network, second: Network | None) -> AccuracyDifference | None:
    """The paired difference in mean IoU; None where predictions of either are not there."""
    if second is None or first is second:
        return None
    own, reference = (_confusions(run, row) for row in (first, second))
    if not own or not reference:
        return None
    if len(reference) != len(own):
        if min(len(own), len(reference)) > 1:
            return None
        # A teacher is not trained anew for each trial.
        own, reference = (
            side * (len(other) if len(side) == 1 else 1)
            for side, other in ((own, reference), (reference, own))
        )
    metrics = [[image_metrics(one) for one in side] for side in (own, reference)]
    compared = bootstrap(*metrics, seed=_SEED)
    if compared is None:
        return None
    row = compared[run.task.metric]
    low, high = row["interval"]
    # Of one training each the interval alone tells; a p-value is that of several.
    error = (high - low) / (2 * 1.96)
    return AccuracyDifference(row["difference"], error, (low, high), row["p_value"])


def segmentation(run: RunData) -> list[Block]:
    """IoU by class of teacher and students, and pictures; empty for other tasks."""
    if not run.task.is_dense or not run.students:
        return []
    return [Heading("Segmentation"), *_by_class(run), *_pictures(run)]


def _by_class(run: RunData) -> list[Block]:
    rows = [*run.teachers[:1], *run.students]
    sums = [(row, c) for row in rows if (c := _confusions(run, row))]
    if not sums:
        return [Paragraph("Predictions of the test images were not saved.")]
    truth = np.sum(sums[0][1][0], axis=0, dtype=np.int64).sum(1)
    columns = [
        Column("Class", is_number=False),
        Column("Pixels", "%"),
        *(Column(row.title, "IoU, %") for row, _ in sums),
    ]
    each = [_mean_iou(confusions) for _, confusions in sums]
    cells: list[list[ReportCell | str]] = []
    for number, name in enumerate(run.class_names):
        share = 100 * truth[number] / max(1, truth.sum())
        values = [formats.decimal(None if np.isnan(v[number]) else v[number]) for v in each]
        cells.append([name, formats.decimal(share), *values])
    caption = "Intersection over union by class on the test images, means over the trials"
    text = "A dash: the class is neither there nor predicted. Pixels are those of the truth."
    return [ReportTable(columns, cells, caption), Paragraph(text, is_note=True)]


def _mean_iou(confusions: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """(K,) in percent, the mean over trials of a class's IoU."""
    each = [
        iou_per_class(torch.from_numpy(one.sum(0, dtype=np.int64))).numpy() for one in confusions
    ]
    stacked = np.stack(each)
    seen = ~np.isnan(stacked)
    total = np.where(seen, stacked, 0).sum(0)
    return np.where(seen.any(0), 100 * total / np.maximum(1, seen.sum(0)), np.nan)


def _confusions(run: RunData, row: Network) -> list[NDArray[np.int32]]:
    """Counts (N, K, K) of each trial; none where one of them saved none."""
    read = [read_confusion(folder / PREDICTIONS) for folder in _folders(run, row)]
    found = [one for one in read if one is not None]
    return found if len(found) == len(read) else []


def _folders(run: RunData, row: Network) -> list[Path]:
    if row.is_teacher:
        return [run.folder / "teacher" / str(run.teachers.index(row))]
    numbers = [int(trial.get("trial", 0)) for trial in row.trials]
    return [run.folder / "distill" / (f"{row.label}-trial{n}" if n else row.label) for n in numbers]


def _pictures(run: RunData) -> list[Block]:
    """Test images, their true masks, and those of teacher, students and the int8 file."""
    teacher = run.folder / "teacher" / "0" / SAMPLES
    photos = sorted(teacher.glob("*-photo.png"))
    if not photos:
        return []
    numbers = [int(path.name.split("-")[0]) for path in photos]
    shipped = run.values("export").get("student") or (run.recommended or run.students[0]).label
    alone = [run.baseline.label] if run.baseline and run.baseline.label != shipped else []
    places = {
        "teacher": teacher,
        **{label: run.folder / "distill" / label / SAMPLES for label in (shipped, *alone)},
        "int8": run.folder / "export" / SAMPLES,
    }
    images = [_read(teacher / photo_file(n)).permute(2, 0, 1) for n in numbers]
    rows = [("truth", [_read(teacher / truth_file(n)).long() for n in numbers])]
    for name, folder in places.items():
        files = [folder / mask_file(n) for n in numbers]
        if all(file.is_file() for file in files):
            rows.append((name, [_read(file).long() for file in files]))
    names = tuple(run.class_names)
    picture = draw_masks(images, rows, names, background=names[:1] == (BACKGROUND,))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = run.folder / _PICTURE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    titles = ", ".join(name for name, _ in rows)
    alt = f"{len(numbers)} test images and their masks, from top to bottom: image, {titles}"
    caption = f"Test images, and their masks below: {titles}. Pixels without a class are bare."
    return [Figure([Image(_PICTURE, alt, buffer.getvalue())], caption)]


def _read(path: Path) -> Tensor:
    with Picture.open(path) as opened:
        return torch.from_numpy(np.array(opened))

"""Initialisations on the same test images: McNemar's test of classes, a bootstrap of other metrics.

Every training leaves what it predicted of each test image in its folder, so that also one that was
done earlier can be compared. Of one seed an interval holds for these trainings and other test
images; of several, paired by their number, for other seeds as well (`comparison.crossed_interval`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.comparison import bootstrap as images_drawn_again
from compress.comparison.bootstrap import ImageMetrics
from compress.comparison.paired import compare_correct
from compress.comparison.predictions import (
    PREDICTIONS,
    prediction_arrays,
    read_predictions,
    write_predictions,
)
from compress.errors import UserError

# Of an init's trainings and the reference's, paired: metric -> {difference, interval, p_value}.
Comparison = Callable[[Sequence[Path], Sequence[Path]], dict[str, dict[str, Any]] | None]


def save_predictions(
    folder: Path,
    labels: NDArray[Any],
    top1: NDArray[Any],
    probabilities: NDArray[Any],
    images: str,
) -> None:
    """Write a training's `predictions.npz`, see `compress.comparison.predictions`."""
    write_predictions(folder / PREDICTIONS, prediction_arrays(labels, top1, probabilities), images)


def compare_predictions(
    own: Sequence[Path], reference: Sequence[Path]
) -> dict[str, dict[str, Any]] | None:
    """The paired difference in top-1 of trainings with predictions; None where one has none.

    All trainings of an entry see the same pictures in one order, whatever size their encoder takes.
    """
    try:
        pairs = [[read_predictions(folder / PREDICTIONS) for folder in f] for f in (own, reference)]
    except UserError:
        return None  # a training made before predictions were saved
    labels = pairs[0][0].labels
    if not all(np.array_equal(one.labels, labels) for several in pairs for one in several):
        return None
    paired = compare_correct(*(np.stack([one.correct for one in several]) for several in pairs))
    low, high = paired.interval
    return {
        "top1_percent": {
            "difference": 100 * paired.difference,
            "interval": [100 * low, 100 * high],
            "p_value": paired.p_value,
        }
    }


def bootstrap(
    read: Callable[[Path], ImageMetrics | None],
    own: Sequence[Path],
    reference: Sequence[Path],
    *,
    seed: int,
    resamples: int = images_drawn_again.RESAMPLES,
) -> dict[str, dict[str, Any]] | None:
    """`compress.comparison.bootstrap` of trainings in folders, whose metrics `read` gives."""
    trainings = [[read(folder) for folder in folders] for folders in (own, reference)]
    return images_drawn_again.bootstrap(*trainings, seed=seed, resamples=resamples)

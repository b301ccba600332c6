"""Initialisations on the same test images: McNemar's test of classes, a bootstrap of other metrics.

Every training leaves what it predicted of each test image in its folder, so that also one that was
done earlier can be compared. Of one seed an interval holds for these trainings and other test
images; of several, paired by their number, for other seeds as well (`comparison.crossed_interval`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.comparison.paired import compare_correct, crossed_interval
from compress.comparison.predictions import (
    PREDICTIONS,
    prediction_arrays,
    read_predictions,
    write_predictions,
)
from compress.errors import UserError
from compress.seeding import seed_for

RESAMPLES = 1000
# Of an init's trainings and the reference's, paired: metric -> {difference, interval, p_value}.
Comparison = Callable[[Sequence[Path], Sequence[Path]], dict[str, dict[str, Any]] | None]
Weights = NDArray[np.int64]  # (N,): how often each test image counts


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of one training as a function of how often each of `images` test images counts."""

    images: int
    of_weights: Callable[[Weights], Mapping[str, float]]


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
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]] | None:
    """Paired differences of metrics that are no mean over images, such as average precision.

    Test images are drawn with replacement, the same ones for both, and all metrics computed on
    them (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Of one seed the interval
    is that of the percentiles; of several the bootstrap's standard deviation is the error over
    images in `crossed_interval`. Nothing is random but the draws of `seed`.

    Args:
        read: the metrics of a training from its folder; None where it left no predictions.
    """
    trainings = [[read(folder) for folder in folders] for folders in (own, reference)]
    pairs = [
        (one, other)
        for one, other in zip(*trainings, strict=True)
        if one is not None and other is not None and one.images == other.images
    ]
    if len(pairs) < len(own):
        return None
    images = pairs[0][0].images
    keys = list(pairs[0][0].of_weights(np.ones(images, dtype=np.int64)))
    generator = np.random.default_rng(seed_for(seed, "transfer", "bootstrap") % 2**63)

    def differences(weights: Weights) -> NDArray[np.float64]:
        """(pairs, metrics)."""
        both = [[one.of_weights(weights) for one in pair] for pair in pairs]
        return np.array([[one[key] - other[key] for key in keys] for one, other in both])

    actual = differences(np.ones(images, dtype=np.int64))
    drawn = np.stack(
        [
            differences(generator.multinomial(images, np.full(images, 1 / images))).mean(0)
            for _ in range(resamples)
        ]
    )
    return {
        key: _summary(actual[:, place], drawn[:, place], images) for place, key in enumerate(keys)
    }


def _summary(
    actual: NDArray[np.float64], drawn: NDArray[np.float64], images: int
) -> dict[str, Any]:
    """Of a metric: the differences of each pair, and of the resampled images."""
    mean, p_value = float(actual.mean()), None
    low, high = (float(end) for end in np.percentile(drawn, (2.5, 97.5)))
    if len(actual) > 1:
        error = float(drawn.std(ddof=1))
        _, (low, high), p_value = crossed_interval(mean, actual.tolist(), error, images)
    return {"difference": mean, "interval": [low, high], "p_value": p_value}

"""Paired bootstrap over test images, for metrics that are no mean over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.comparison.paired import crossed_interval
from compress.seeding import seed_for

RESAMPLES = 1000
Weights = NDArray[np.int64]  # (N,): how often each test image counts


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of one training as a function of how often each of `images` test images counts."""

    images: int
    of_weights: Callable[[Weights], Mapping[str, float]]


def bootstrap(
    own: Sequence[ImageMetrics | None],
    reference: Sequence[ImageMetrics | None],
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
        own: the metrics of each training; None where it left no predictions.
        reference: those of the trainings of the same numbers.
    """
    pairs = [
        (one, other)
        for one, other in zip(own, reference, strict=True)
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

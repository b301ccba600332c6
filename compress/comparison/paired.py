"""Two networks on the same test images: exact test and interval of a paired difference.

Of n images, b are classified correctly by the first network alone and c by the second alone; the
others, which both get right or both wrong, say nothing of the difference (b - c) / n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

LEVEL = 0.95
_BESIDE = 1e-9
Interval = tuple[float, float]
Correct = NDArray[np.bool_]  # one row per training, one column per image


@dataclass(frozen=True)
class PairedShares:
    """The difference of two shares of the same images, its 95 % interval and a test of zero.

    Of one training each: the exact McNemar test and `paired_interval`, which agree. Of several:
    Student's t on the variance over trainings and images. `standard_error` is the difference's.
    """

    difference: float
    standard_error: float
    interval: Interval
    p_value: float


def compare_correct(first: Correct, second: Correct) -> PairedShares:
    """First minus second, from which images each got right.

    Args:
        first, second: (T, N), training t of one paired with training t of the other; or (N,).
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"pairs of trainings and images are needed: {first.shape}, {second.shape}")
    if len(first) > 1:
        return _compare_trainings(first.astype(np.float64) - second)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    images = first.shape[1]
    difference = (only_first - only_second) / images
    variance = ((only_first + only_second) / images - difference**2) / images
    return PairedShares(
        difference,
        math.sqrt(max(variance, 0.0)),
        paired_interval(only_first, only_second, images),
        mcnemar_p_value(only_first, only_second),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar, Psychometrika 12, 1947).

    If both networks were equally good, each image that one alone gets right would be either's with
    probability 1/2: p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2). Without such images
    p is 1.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_interval(only_first: int, only_second: int, images: int) -> Interval:
    """Tango's interval, widened to hold the exact conditional one.

    Tango's alone may leave out zero where the exact test does not tell the networks apart. The
    other is that of the test: of the b + c images that tell anything, the first's share has Clopper
    and Pearson's interval (Biometrika 26, 1934), and a share s is a difference of
    (2 s - 1) (b + c) / n. Together they leave out zero where p < 0.05, and only there.
    """
    low, high = tango_interval(only_first, only_second, images)
    discordant = only_first + only_second
    if not discordant:
        return low, high
    share = binomtest(only_first, discordant).proportion_ci(LEVEL, method="exact")
    ends = ((2 * float(end) - 1) * discordant / images for end in (share.low, share.high))
    exact_low, exact_high = ends
    return min(low, exact_low), max(high, exact_high)


def tango_interval(
    only_first: int, only_second: int, images: int, level: float = LEVEL
) -> Interval:
    """Score interval of the difference (b - c) / n of paired shares.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998): all d whose score statistic

        T(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d)))

    lies within the normal quantile z; q is the maximum-likelihood probability of "second alone"
    under the difference d: the larger root of A q^2 + B q + C = 0 with A = 2n,
    B = -b - c + (2n - b + c) d, C = -c d (1 - d). T falls in d, so that the ends are found by
    bisection (Brent). It keeps its level in small samples, and has a width where b = c = 0:
    z^2 / (n + z^2) to both sides.
    """
    z = float(norm.ppf(0.5 + level / 2))

    def excess(d: float, bound: float) -> float:
        a, c = 2 * images, -only_second * d * (1 - d)
        b = -only_first - only_second + (2 * images - only_first + only_second) * d
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = images * max(2 * q + d * (1 - d), 0.0)
        # Multiplied out: nothing is divided by zero at the ends.
        return only_first - only_second - images * d - bound * math.sqrt(variance)

    estimate = (only_first - only_second) / images
    # At the estimate itself the statistic is 0 / 0 where the variance is zero.
    below, above = estimate - _BESIDE, estimate + _BESIDE
    low = -1.0 if below <= -1 else brentq(excess, -1.0, below, args=(z,), xtol=1e-12)
    high = 1.0 if above >= 1 else brentq(excess, above, 1.0, args=(-z,), xtol=1e-12)
    return float(low), float(high)


def _compare_trainings(differences: NDArray[np.float64]) -> PairedShares:
    """Of (T, N) differences in -1, 0, 1 of T > 1 pairs of trainings on N images.

    See `crossed_interval`. The error over the images is that of their means over the trainings, as
    if there were two images more, half of one in each cell of the table of right and wrong (Agresti
    and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24, 2005), so that it is not zero where few images are classified differently.
    """
    per_image = differences.mean(0)
    images = len(per_image)
    squares = float((per_image**2).sum()) + 1 - float(per_image.sum()) ** 2 / (images + 2)
    images_error = math.sqrt(squares) / (images + 2)
    mean = float(per_image.mean())
    per_training: list[float] = differences.mean(1).tolist()
    return PairedShares(mean, *crossed_interval(mean, per_training, images_error, images))


def crossed_interval(
    mean: float, per_training: Sequence[float], images_error: float, images: int
) -> tuple[float, Interval, float]:
    """Standard error, 95 % interval and p-value of a mean over trainings x images.

    Every training is tested on the same images, so that a difference varies with both:

        V = s_T^2 / T + s_N^2 / N

    with s_T^2 the variance of the trainings' differences and s_N^2 that of the images' (their means
    over the trainings). It counts what is particular to a training on an image twice, which makes
    it a little too large, never too small (A. Owen, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1, 2007). Degrees of freedom by Satterthwaite (1946); with few trainings these are
    few, and the interval is wide.

    Args:
        mean: the difference.
        per_training: that of each training, T of them, two or more.
        images_error: s_N / sqrt(N), the standard error over the images.
        images: N.
    """
    parts = [(float(np.var(per_training, ddof=1)) / len(per_training), len(per_training) - 1)]
    parts.append((images_error**2, max(images - 1, 1)))
    variance = sum(value for value, _ in parts)
    if variance == 0:
        return 0.0, (mean, mean), 1.0 if mean == 0 else 0.0
    freedom = variance**2 / sum(value**2 / count for value, count in parts)
    error = math.sqrt(variance)
    half = float(student_t.ppf(0.5 + LEVEL / 2, freedom)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    return error, (mean - half, mean + half), p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for as many tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m is multiplied by m - i + 1; none is below one before it, or above 1.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted

"""McNemar's test, Tango's interval and the variance over trainings and images."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from compress.comparison import (
    compare_correct,
    holm,
    mcnemar_p_value,
    paired_interval,
    tango_interval,
)
from compress.comparison.paired import crossed_interval

Z = 1.959963984540054


def test_mcnemar_sums_the_binomial_tail() -> None:
    for b, c in itertools.product(range(6), range(6)):
        outcomes = [sum(flips) for flips in itertools.product((0, 1), repeat=b + c)]
        as_far = sum(abs(heads - (b + c) / 2) >= abs(b - c) / 2 for heads in outcomes)
        assert mcnemar_p_value(b, c) == pytest.approx(as_far / len(outcomes)), (b, c)


def test_mcnemar_and_tango_on_the_approval_ratings() -> None:
    """Agresti, Categorical Data Analysis, table 10.1: 150 and 86 of 1,600 changed their mind.

    Its Wald interval is 0.04 +- 1.96 x 0.0095; the exact p-value is that of R's exact2x2.
    """
    assert mcnemar_p_value(150, 86) == pytest.approx(3.716e-05, rel=1e-3)
    low, high = tango_interval(150, 86, 1600)
    half = Z * math.sqrt(236 - 64**2 / 1600) / 1600
    assert (low, high) == pytest.approx((0.04 - half, 0.04 + half), abs=3e-4)


def score_statistic(b: int, c: int, n: int, d: float) -> float:
    """(b - c - n d) over its error under P(first alone) = q + d, P(second alone) = q.

    q maximises the multinomial likelihood, found on a grid that is refined: no formula is shared
    with the implementation.
    """

    def likelihood(q: float) -> float:
        total = 0.0
        for count, share in ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d)):
            if count:
                total += count * math.log(share) if share > 0 else -math.inf
        return total

    low, high = max(0.0, -d), (1 - d) / 2
    for _ in range(12):
        grid = [low + (high - low) * step / 40 for step in range(41)]
        best = max(range(41), key=lambda step: likelihood(grid[step]))
        low, high = grid[max(0, best - 1)], grid[min(40, best + 1)]
    q = (low + high) / 2
    return (b - c - n * d) / math.sqrt(n * (2 * q + d - d * d))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(12, 2, 50), (0, 1, 44), (3, 3, 10), (7, 0, 9), (0, 0, 30), (40, 35, 300)]
)
def test_the_ends_of_tangos_interval_are_one_quantile_from_the_data(b: int, c: int, n: int) -> None:
    low, high = tango_interval(b, c, n)
    assert low < (b - c) / n < high
    assert score_statistic(b, c, n, low) == pytest.approx(Z, abs=1e-4)
    assert score_statistic(b, c, n, high) == pytest.approx(-Z, abs=1e-4)


def test_tangos_interval_at_the_ends() -> None:
    assert tango_interval(0, 0, 300) == pytest.approx((-(Z**2) / (300 + Z**2), Z**2 / (300 + Z**2)))
    assert tango_interval(9, 0, 9) == pytest.approx(((9 - Z**2) / (9 + Z**2), 1.0))
    low, high = tango_interval(5, 11, 80)
    assert tango_interval(11, 5, 80) == pytest.approx((-high, -low))
    assert tango_interval(0, 0, 1) == pytest.approx((-(Z**2) / (1 + Z**2), Z**2 / (1 + Z**2)))


def test_interval_and_test_agree() -> None:
    """Tango's interval of 0 and 4 of 300 images leaves out zero, though p is 0.125."""
    assert tango_interval(0, 4, 300)[1] < 0 < paired_interval(0, 4, 300)[1]
    # Four of four: P(X = 0) = (1 - s)^4 is 0.025 at the end of Clopper and Pearson's interval.
    share = 1 - 0.025 ** (1 / 4)
    assert paired_interval(0, 4, 300)[1] == pytest.approx((2 * share - 1) * 4 / 300)
    for b, c in itertools.product(range(12), range(12)):
        low, high = paired_interval(b, c, 40)
        assert (low <= 0 <= high) == (mcnemar_p_value(b, c) >= 0.05), (b, c)
        tango = tango_interval(b, c, 40)
        assert low <= tango[0] and tango[1] <= high


def test_one_training_each_counts_what_one_alone_gets_right() -> None:
    first = np.array([1, 1, 1, 0, 1, 0, 1, 1], dtype=bool)
    second = np.array([1, 0, 0, 1, 1, 0, 1, 0], dtype=bool)
    paired = compare_correct(first, second)
    assert paired.difference == pytest.approx(2 / 8)
    assert paired.p_value == mcnemar_p_value(3, 1)
    assert paired.interval == paired_interval(3, 1, 8)
    assert paired.standard_error == pytest.approx(math.sqrt((4 - 2**2 / 8) / 8**2))
    with pytest.raises(ValueError, match="pairs of trainings"):
        compare_correct(first, second[:-1])


def test_several_trainings_by_loops() -> None:
    generator = np.random.default_rng(0)
    first = generator.random((3, 40)) < 0.9
    second = generator.random((3, 40)) < 0.7
    paired = compare_correct(first, second)

    difference = [[int(first[t, i]) - int(second[t, i]) for i in range(40)] for t in range(3)]
    of_training = [sum(row) / 40 for row in difference]
    of_image = [sum(difference[t][i] for t in range(3)) / 3 for i in range(40)]
    mean = sum(of_training) / 3
    over_trainings = sum((d - mean) ** 2 for d in of_training) / 2 / 3
    # As of 42 images, of which the last two add a half to each side of the table.
    squares = sum(d * d for d in of_image) + 0.5 + 0.5
    over_images = (squares - sum(of_image) ** 2 / 42) / 42**2
    variance = over_trainings + over_images
    freedom = variance**2 / (over_trainings**2 / 2 + over_images**2 / 39)
    half = student_t.ppf(0.975, freedom) * math.sqrt(variance)
    assert paired.difference == pytest.approx(mean)
    assert paired.standard_error == pytest.approx(math.sqrt(variance))
    assert paired.interval == pytest.approx((mean - half, mean + half))
    # p is 0.05 where an end of the interval is zero.
    assert (paired.p_value < 0.05) == (not paired.interval[0] <= 0 <= paired.interval[1])


def test_spread_between_trainings_widens_the_interval() -> None:
    """Three trainings that differ by 0, 10 and 20 of 100 images say less than thrice 10."""
    second = np.zeros((3, 100), dtype=bool)
    alike, apart = second.copy(), second.copy()
    alike[:, :10] = True
    for row, count in enumerate((0, 10, 20)):
        apart[row, :count] = True
    clear, wide = compare_correct(alike, second), compare_correct(apart, second)
    assert clear.difference == pytest.approx(wide.difference)
    assert clear.p_value < 0.05 < wide.p_value
    assert wide.interval[0] < 0 < clear.interval[0]


def test_networks_that_never_differ_are_not_known_to_be_equal() -> None:
    same = np.ones((2, 50), dtype=bool)
    paired = compare_correct(same, same)
    assert paired.p_value == 1 and paired.interval[0] < 0 < paired.interval[1]


def test_the_crossed_interval_covers_new_trainings_and_new_images() -> None:
    """Effects of trainings, of images and of both drawn anew: 95 % intervals hold the truth."""
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        cells = generator.normal(0, 1, (4, 1)) + generator.normal(0, 3, (1, 30))
        cells = cells + generator.normal(0, 1, (4, 30))
        error = float(cells.mean(0).std(ddof=1)) / math.sqrt(30)
        _, (low, high), _ = crossed_interval(float(cells.mean()), cells.mean(1).tolist(), error, 30)
        covered.append(low < 0 < high)
    assert 0.93 < np.mean(covered) <= 0.99


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []

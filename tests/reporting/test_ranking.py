"""Standard errors and the recommendation, against arithmetic done by hand."""

import math

import pytest

from compress.reporting.ranking import (
    AccuracyDifference,
    Candidate,
    difference,
    difference_standard_error,
    recommend,
    standard_error_percent,
)


def test_standard_error_by_hand() -> None:
    # 90 % of 100 images: sqrt(0.9 * 0.1 / 100) = sqrt(0.0009) = 0.03.
    assert standard_error_percent(90.0, 100) == pytest.approx(3.0)
    # 50 % of 10,000: sqrt(0.25 / 10000) = 0.005.
    assert standard_error_percent(50.0, 10_000) == pytest.approx(0.5)


def test_standard_error_is_that_of_simulated_test_sets() -> None:
    """The exact binomial distribution, summed term by term: 80 % of 25 images."""
    n, p = 25, 0.8
    probability = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    centre = sum(q * k / n for k, q in enumerate(probability))
    variance = sum(q * (k / n - centre) ** 2 for k, q in enumerate(probability))
    assert standard_error_percent(80.0, n) == pytest.approx(100 * math.sqrt(variance))


def test_four_times_the_images_halve_the_error() -> None:
    assert standard_error_percent(73.0, 400) == pytest.approx(standard_error_percent(73.0, 100) / 2)


def test_no_error_where_all_or_none_are_right() -> None:
    assert standard_error_percent(100.0, 7) == standard_error_percent(0.0, 7) == 0.0


@pytest.mark.parametrize(("percent", "n"), [(100.5, 10), (-1.0, 10), (50.0, 0)])
def test_impossible_accuracies_are_refused(percent: float, n: int) -> None:
    with pytest.raises(ValueError, match="got"):
        standard_error_percent(percent, n)


def test_difference_combines_squares() -> None:
    # 90 % of 100 (error 3) and 80 % of 100 (error 4): sqrt(9 + 16) = 5.
    assert difference_standard_error(90.0, 100, 80.0, 100) == pytest.approx(5.0)
    found = difference(90.0, 100, 80.0, 100)
    assert found.points == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("points", "reading"),
    [
        (4.0, "not distinguishable"),
        (-4.0, "not distinguishable"),
        (4.01, "higher"),
        (-4.01, "lower"),
        (0.0, "not distinguishable"),
    ],
)
def test_two_standard_errors_decide(points: float, reading: str) -> None:
    assert AccuracyDifference(points, 2.0).reading == reading


def test_the_most_accurate_is_recommended_where_it_is_clearly_better() -> None:
    # Error of the difference at n = 10,000 is about 0.4 points; 5 points are clear.
    rows = [Candidate("small", 80.0, 10_000, 10), Candidate("large", 85.0, 10_000, 90)]
    choice = recommend(rows)
    assert choice is not None
    assert (choice.label, choice.most_accurate) == ("large", "large")


def test_a_smaller_student_within_two_standard_errors_is_recommended() -> None:
    # At n = 100 the error of the difference is 5 points, so 9 points are not distinguishable.
    rows = [
        Candidate("tiny", 70.0, 100, 5),  # 20 points behind: out
        Candidate("small", 81.0, 100, 10),
        Candidate("middle", 85.0, 100, 50),
        Candidate("large", 90.0, 100, 90),
    ]
    choice = recommend(rows)
    assert choice is not None
    assert (choice.label, choice.most_accurate) == ("small", "large")
    assert choice.difference.points == pytest.approx(-9.0)


def test_of_equal_sizes_the_most_accurate_then_the_first() -> None:
    rows = [
        Candidate("a", 88.0, 100, 10),
        Candidate("b", 89.0, 100, 10),
        Candidate("c", 89.0, 100, 10),
        Candidate("large", 90.0, 100, 90),
    ]
    choice = recommend(rows)
    assert choice is not None and choice.label == "b"


def test_without_sizes_accuracy_alone_decides() -> None:
    choice = recommend([Candidate("a", 88.0, 100), Candidate("b", 89.0, 100)])
    assert choice is not None and choice.label == "b"
    assert recommend([]) is None

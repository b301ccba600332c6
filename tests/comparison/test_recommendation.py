"""Standard errors and the recommendation, against arithmetic done by hand."""

import math

import numpy as np
import pytest

from compress.comparison import (
    AccuracyDifference,
    Candidate,
    Predictions,
    Score,
    compare_classes,
    compare_scores,
    recommend,
    standard_error_percent,
)


def candidate(label: str, percent: float, images: int, parameters: int | None = None) -> Candidate:
    return Candidate(label, Score(percent, images), parameters)


def predictions(correct: str, images: str = "digest", labels: str = "") -> Predictions:
    """`correct`: one letter per image, 1 where it is classified correctly."""
    truth = np.array([int(label) for label in labels or "0" * len(correct)], dtype=np.int32)
    right = np.array([letter == "1" for letter in correct])
    return Predictions(truth, np.where(right, truth, truth + 1), images)


def score(*trials: str, fixed: bool = False, **more: str) -> Score:
    several = {number: predictions(correct, **more) for number, correct in enumerate(trials)}
    share = np.mean([[letter == "1" for letter in correct] for correct in trials])
    return Score(100 * float(share), len(trials[0]), several, fixed)


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


def test_unpaired_difference_combines_squares() -> None:
    # 90 % of 100 (error 3) and 80 % of 100 (error 4): sqrt(9 + 16) = 5.
    difference = compare_scores(Score(90.0, 100), Score(80.0, 100))
    assert difference.standard_error == pytest.approx(5.0)
    assert difference.points == pytest.approx(10.0)
    assert not difference.is_paired and difference.interval is None


def test_paired_where_independent_test_sets_would_tell_nothing() -> None:
    """10 of 100 images are found by one network alone: clear, though both errors are 4 points."""
    better, worse = score("1" * 90 + "0" * 10), score("1" * 80 + "0" * 20)
    difference = compare_scores(better, worse)
    assert difference.is_paired and difference.reading == "higher"
    assert difference.p_value == pytest.approx(2 / 2**10)
    assert compare_scores(worse, better).reading == "lower"
    alone = compare_scores(Score(90.0, 100), Score(80.0, 100))
    assert alone.reading == "not distinguishable"


def test_only_predictions_of_the_same_images_and_trainings_are_paired() -> None:
    one = score("1100", "1110")
    assert compare_scores(one, score("1000", "0110")).is_paired
    assert not compare_scores(one, score("1000", "0110", images="others")).is_paired
    assert not compare_scores(one, score("1000", "0110", labels="0001")).is_paired
    assert not compare_scores(one, score("1000")).is_paired
    assert not compare_scores(one, Score(50.0, 4)).is_paired
    teacher = score("1111", fixed=True)
    assert compare_scores(one, teacher).points == pytest.approx(-37.5)
    assert compare_scores(teacher, one).points == pytest.approx(37.5)


def test_classes_are_compared_on_their_own_images() -> None:
    first, second = (score(row, labels="00112") for row in ("11010", "01010"))
    difference = compare_classes(first, second)
    assert {label: one.points for label, one in difference.items()} == {0: 50.0, 1: 0.0, 2: 0.0}
    assert compare_classes(first, Score(50.0, 5)) == {}


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
    rows = [candidate("small", 80.0, 10_000, 10), candidate("large", 85.0, 10_000, 90)]
    choice = recommend(rows)
    assert choice is not None
    assert (choice.label, choice.most_accurate) == ("large", "large")


def test_a_smaller_student_within_two_standard_errors_is_recommended() -> None:
    # At n = 100 the error of the difference is 5 points, so 9 points are not distinguishable.
    rows = [
        candidate("tiny", 70.0, 100, 5),  # 20 points behind: out
        candidate("small", 81.0, 100, 10),
        candidate("middle", 85.0, 100, 50),
        candidate("large", 90.0, 100, 90),
    ]
    choice = recommend(rows)
    assert choice is not None
    assert (choice.label, choice.most_accurate) == ("small", "large")
    assert choice.difference.points == pytest.approx(-9.0)


def test_of_equal_sizes_the_most_accurate_then_the_first() -> None:
    rows = [
        candidate("a", 88.0, 100, 10),
        candidate("b", 89.0, 100, 10),
        candidate("c", 89.0, 100, 10),
        candidate("large", 90.0, 100, 90),
    ]
    choice = recommend(rows)
    assert choice is not None and choice.label == "b"


def test_without_sizes_accuracy_alone_decides() -> None:
    choice = recommend([candidate("a", 88.0, 100), candidate("b", 89.0, 100)])
    assert choice is not None and choice.label == "b"
    assert recommend([]) is None


def test_a_smaller_student_is_recommended_unless_the_test_tells_them_apart() -> None:
    large = Candidate("large", score("1" * 90 + "0" * 10), 90)
    small = Candidate("small", score("1" * 80 + "0" * 20), 10)
    equal = Candidate("equal", score("0" * 5 + "1" * 85 + "0" * 10), 20)
    choice = recommend([large, small])
    assert choice is not None and choice.label == "large"
    choice = recommend([large, small, equal])  # 5 of 5 images: p = 0.0625
    assert choice is not None and choice.label == "equal"
    assert choice.difference.p_value == pytest.approx(0.0625)

"""Pruning ratios against the published ones (SimKD, Tables S.8 and S.10)."""

import pytest

from compress.accounting import (
    projector_to_student_percent,
    pruning_ratio_cost_points,
    pruning_ratio_percent,
)

TEACHER, STUDENT = 7_433_860, 1_233_540  # resnet32x4 and resnet8x4 with 100 classes
STUDENT_CLASSIFIER = TEACHER_CLASSIFIER = 256 * 100 + 100

# The printed shares are 0.01 to 0.06 below what the paper's own formula for the projector gives.
SHARE_ERROR = 0.06


def projector(reduction: int, student: int = 256, teacher: int = 256) -> int:
    """Parameters of SimKD's projector, from its three convolutions and batch norms."""
    middle = teacher // reduction
    convolutions = student * middle + 9 * middle * middle + middle * teacher
    return convolutions + 2 * (middle + middle + teacher)


# r -> (cost in points, projector / student in per cent) as printed in Table S.8
@pytest.mark.parametrize(
    ("reduction", "cost", "share"),
    [(8, 0.35, 2.11), (4, 0.94, 5.67), (2, 2.88, 17.34), (1, 9.71, 58.51)],
)
def test_published_costs(reduction: int, cost: float, share: float) -> None:
    added = projector(reduction)
    deployed = STUDENT - STUDENT_CLASSIFIER + added + TEACHER_CLASSIFIER
    # The paper cuts off after two digits.
    assert pruning_ratio_cost_points(deployed, STUDENT, TEACHER) == pytest.approx(cost, abs=0.011)
    assert projector_to_student_percent(added, STUDENT) == pytest.approx(share, abs=SHARE_ERROR)


def test_published_ratios() -> None:
    assert pruning_ratio_percent(1_447_556, TEACHER) == pytest.approx(80.53, abs=0.005)
    assert pruning_ratio_percent(STUDENT, TEACHER) == pytest.approx(83.41, abs=0.005)


def test_limits() -> None:
    assert pruning_ratio_percent(10, 10) == 0
    assert pruning_ratio_percent(0, 10) == 100
    assert pruning_ratio_percent(15, 10) == pytest.approx(-50)
    assert pruning_ratio_cost_points(7, 7, 10) == 0
    # A projector and a classifier that are smaller than the student's own classifier.
    assert pruning_ratio_cost_points(6, 7, 10) == pytest.approx(-10)
    assert projector_to_student_percent(0, 7) == 0


def test_an_empty_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="0 parameters"):
        pruning_ratio_percent(1, 0)
    with pytest.raises(ValueError, match="0 parameters"):
        projector_to_student_percent(1, 0)

"""Pruning ratios as functions of parameter counts; the papers' tables are in test_paper_tables."""

import pytest
from torch import nn

from compress.accounting import (
    projector_to_student_percent,
    pruning_columns,
    pruning_ratio_cost_points,
    pruning_ratio_percent,
)

TEACHER, STUDENT = 7_433_860, 1_233_540  # resnet32x4 and resnet8x4 with 100 classes


# By hand: the student, a projector of SimKD's eq. 5 with r = 1, 2, 4, 8, and a teacher's
# classifier in place of the student's, which is as large.
@pytest.mark.parametrize(
    ("deployed", "ratio"),
    [(1_955_972, 73.69), (1_447_556, 80.53), (1_303_940, 82.46), (1_259_780, 83.05)],
)
def test_ratios_by_hand(deployed: int, ratio: float) -> None:
    assert pruning_ratio_percent(deployed, TEACHER) == pytest.approx(ratio, abs=0.005)
    cost = pruning_ratio_cost_points(deployed, STUDENT, TEACHER)
    assert cost == pytest.approx(83.41 - ratio, abs=0.01)


def test_limits() -> None:
    assert pruning_ratio_percent(10, 10) == 0
    assert pruning_ratio_percent(0, 10) == 100
    assert pruning_ratio_percent(15, 10) == pytest.approx(-50)
    assert pruning_ratio_cost_points(7, 7, 10) == 0
    # A projector and a classifier that are smaller than the student's own classifier.
    assert pruning_ratio_cost_points(6, 7, 10) == pytest.approx(-10)
    assert projector_to_student_percent(0, 7) == 0


def test_columns_of_a_network_with_and_without_a_projector() -> None:
    network = nn.Sequential()
    network.add_module("encoder", nn.Linear(3, 4, bias=False))
    assert pruning_columns(network, student=12, teacher=100) == {
        "projector_parameters": 0,
        "pruning_ratio_percent": pytest.approx(88),
        "plain_pruning_ratio_percent": pytest.approx(88),
        "pruning_ratio_cost_points": 0,
        "projector_to_student_percent": 0,
    }
    network.add_module("projector", nn.Linear(4, 2, bias=False))
    assert pruning_columns(network, student=16, teacher=100) == {
        "projector_parameters": 8,
        "pruning_ratio_percent": pytest.approx(80),
        "plain_pruning_ratio_percent": pytest.approx(84),
        "pruning_ratio_cost_points": pytest.approx(4),
        "projector_to_student_percent": pytest.approx(50),
    }


def test_an_empty_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="0 parameters"):
        pruning_ratio_percent(1, 0)
    with pytest.raises(ValueError, match="0 parameters"):
        projector_to_student_percent(1, 0)

"""RKD against a float64 loop over the formula, its invariances, duplicates, refusals."""

import math

import pytest
import torch
from torch import Tensor

from compress.methods import rkd_loss
from compress.methods.rkd import LARGEST_BATCH, RKD
from tests.methods import building


def _relations(rows: list[list[float]]) -> tuple[list[float], list[float]]:
    def step(i: int, j: int) -> list[float]:
        return [b - a for a, b in zip(rows[i], rows[j], strict=True)]

    def unit(i: int, j: int) -> list[float]:
        norm = math.hypot(*step(i, j))
        return [x / norm for x in step(i, j)] if norm > 0 else [0.0] * len(rows[i])

    count = range(len(rows))
    lengths = [math.hypot(*step(i, j)) for i in count for j in count]
    mean = sum(lengths) / sum(x > 0 for x in lengths)
    angles = [
        sum(a * b for a, b in zip(unit(i, j), unit(i, k), strict=True))
        for i in count
        for j in count
        for k in count
    ]
    return [x / mean for x in lengths], angles


def _huber(own: list[float], target: list[float]) -> float:
    gaps = [abs(a - b) for a, b in zip(own, target, strict=True)]
    return sum(x * x / 2 if x < 1 else x - 0.5 for x in gaps) / len(gaps)


def _oracle(student: Tensor, teacher: Tensor, distance: float, angle: float) -> float:
    own, target = _relations(student.tolist()), _relations(teacher.tolist())
    return distance * _huber(own[0], target[0]) + angle * _huber(own[1], target[1])


def _loss(student: Tensor, teacher: Tensor) -> Tensor:
    return rkd_loss(student, teacher, distance_weight=25.0, angle_weight=50.0)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_equals_the_formula_with_unequal_widths(weights: tuple[float, float]) -> None:
    student = torch.randn(6, 3, dtype=torch.float64)
    student[5] *= 20  # gaps beyond 1 in the smooth L1
    teacher = torch.randn(6, 5, dtype=torch.float64)
    got = rkd_loss(student, teacher, distance_weight=weights[0], angle_weight=weights[1])
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, *weights), rel=1e-10)


def test_zero_for_rotated_shifted_and_scaled_features() -> None:
    features = torch.randn(5, 4, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    for other in (features, features @ rotation, features + 3, 7 * features, -features):
        assert float(_loss(other, features)) == pytest.approx(0, abs=1e-20)
    assert float(_loss(features.flip(0), features)) > 0.1


def test_the_gradient_changes_no_scale() -> None:
    # So it does through the mean distance: a constant mean would let the features grow.
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(_loss(student.requires_grad_(), teacher), student)
    assert float(gradient.abs().max()) > 1e-2
    assert float((gradient * student.detach()).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicated_samples_have_a_finite_and_moderate_gradient(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 4, 3, dtype=dtype)
    student[1] = student[0]
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(student, teacher), student)
    assert gradient.isfinite().all()
    assert float(gradient.abs().max()) < 1e3


def test_duplicated_samples_count_in_the_mean_as_a_pair_1e_6_apart() -> None:
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    student[1] = student[0]
    apart = student.clone()
    apart[1, 0] += 1e-6
    got = rkd_loss(student, teacher, distance_weight=1.0, angle_weight=0.0)
    assert float(got) == pytest.approx(_oracle(apart, teacher, 1.0, 0.0), rel=1e-5)
    got = rkd_loss(student, teacher, distance_weight=0.0, angle_weight=1.0)
    assert float(got) == pytest.approx(_oracle(student, teacher, 0.0, 1.0), rel=1e-10)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_samples_have_no_gradient(count: int) -> None:
    student = torch.ones(count, 3, requires_grad=True)
    loss = _loss(student, torch.randn(count, 3))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert not gradient.any()


def test_a_batch_of_one_has_the_term_zero() -> None:
    assert float(_loss(torch.randn(1, 3), torch.randn(1, 5))) == 0


def test_a_batch_whose_angles_need_too_much_memory_is_refused_in_words() -> None:
    student, teachers = building.networks()
    RKD(building.context(student, teachers, batch_size=LARGEST_BATCH))
    with pytest.raises(ValueError, match=r"at most 300 \(432 MB\), got 301"):
        RKD(building.context(student, teachers, batch_size=LARGEST_BATCH + 1))


@pytest.mark.parametrize("name", ["distance_weight", "angle_weight"])
@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_an_impossible_weight_is_refused_in_words(name: str, weight: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=f"{name} is at least 0"):
        RKD(building.context(student, teachers), **{name: weight})


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher"):
        RKD(building.context(student, teachers))

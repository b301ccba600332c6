"""FKD against a float64 loop over the formula, its invariances, short vectors, refusals."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import fkd_loss, fkd_norm_loss
from compress.methods.contract import pooled
from compress.methods.fkd import FKD
from tests.methods import building


def _vectors(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def _oracle(student: Tensor, teachers: list[Tensor]) -> float:
    own, total = student.tolist(), 0.0
    for i in range(len(own)):
        for j in range(len(own)):
            if i != j:
                kernels = [_cosine(t[i].tolist(), t[j].tolist()) for t in teachers]
                total += (_cosine(own[i], own[j]) - sum(kernels) / len(kernels)) ** 2
    return total / (len(own) * (len(own) - 1))


@pytest.mark.parametrize("teachers", [1, 3])
def test_equals_the_formula_for_unequal_widths(teachers: int) -> None:
    student, known = _vectors(5, 3), [*_vectors(teachers, 5, 4)]
    got = fkd_loss(student, known)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, known), rel=1e-10)


def test_the_norm_is_that_of_whole_vectors() -> None:
    student = _vectors(5, 3)
    expected = sum(math.hypot(*row) ** 2 for row in student.tolist()) / 5
    assert float(fkd_norm_loss(student)) == pytest.approx(expected, rel=1e-10)


def test_zero_for_equal_and_scaled_vectors() -> None:
    vectors = _vectors(6, 4)
    turned = vectors.flip(1)  # another basis
    for other in (vectors, turned, vectors * torch.arange(1, 7)[:, None]):
        assert float(fkd_loss(other, [vectors])) == pytest.approx(0, abs=1e-15)
    assert float(fkd_loss(vectors.flip(0), [vectors])) > 1e-2


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-5])
def test_short_vectors_are_finite_with_a_bounded_gradient(size: float) -> None:
    student, teacher = _vectors(2, 6, 4).float()
    student[0] *= size
    student.requires_grad_()
    value = fkd_loss(student, [teacher])
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert float(gradient.abs().max()) < 1e3


def test_one_image_has_no_pairs() -> None:
    assert float(fkd_loss(_vectors(1, 4), [_vectors(1, 3)])) == 0


def test_the_kernels_of_several_teachers_are_averaged() -> None:
    module = building.distillation(FKD, teachers=2)
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    expected = 100 * fkd_loss(pooled(own), [pooled(one) for one in known])
    torch.testing.assert_close(module.method(own, known, batch)["kernel"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_weight": 0.0}, "kernel_weight is above 0, got 0"),
        ({"norm_weight": -1.0}, "norm_weight is at least 0, got -1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        building.distillation(partial(FKD, **arguments))  # type: ignore[arg-type]

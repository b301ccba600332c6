"""LCKT against Sinkhorn's scaling in float64, its limits, marginals, short vectors, refusals."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import lckt_loss
from compress.methods.lckt import LCKT, transport_plan
from tests.methods import building


def _vectors(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def _oracle(student: Tensor, teacher: Tensor, regularisation: float, iterations: int) -> float:
    """Rows and columns of exp(-C / e) scaled in turn until they sum to 1 / N."""
    images = range(len(student))
    own, known = student.tolist(), teacher.tolist()
    cost = [[1 - _cosine(own[i], known[j]) for j in images] for i in images]
    plan = [[math.exp(-c / regularisation) for c in row] for row in cost]
    for _ in range(iterations):
        for row in plan:
            total = sum(row) * len(plan)
            row[:] = [p / total for p in row]
        sums = [sum(row[j] for row in plan) * len(plan) for j in images]
        for row in plan:
            row[:] = [p / total for p, total in zip(row, sums, strict=True)]
    return sum(plan[i][j] * cost[i][j] for i in images for j in images)


@pytest.mark.parametrize(("regularisation", "iterations"), [(0.05, 50), (0.5, 3), (0.1, 1)])
def test_equals_the_formula(regularisation: float, iterations: int) -> None:
    student, teacher = _vectors(2, 6, 4)
    got = lckt_loss(student, teacher, regularisation=regularisation, iterations=iterations)
    assert got.dtype == torch.float64
    expected = _oracle(student, teacher, regularisation, iterations)
    assert float(got) == pytest.approx(expected, rel=1e-8)


def test_the_plan_has_uniform_marginals() -> None:
    plan = transport_plan(torch.rand(7, 7, dtype=torch.float64), 0.1, 200)
    for axis in (0, 1):
        torch.testing.assert_close(plan.sum(axis), torch.full((7,), 1 / 7, dtype=torch.float64))


def test_finds_which_image_is_which() -> None:
    vectors = _vectors(6, 16)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss = lckt_loss(2 * vectors[order], vectors, regularisation=0.01)
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_a_large_regularisation_gives_the_mean_cost() -> None:
    student, teacher = _vectors(2, 5, 4)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (student, teacher)]
    expected = 1 - (unit[0] @ unit[1].t()).mean()
    got = lckt_loss(student, teacher, regularisation=1e6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_regularised_optimum() -> None:
    """By the envelope theorem: of sum Pi C - e H(Pi) at its optimum, whose plan moves as well."""
    student, teacher = _vectors(2, 5, 4)
    student.requires_grad_()
    settings: dict[str, Any] = {"regularisation": 0.3, "iterations": 400}
    (got,) = torch.autograd.grad(lckt_loss(student, teacher, **settings), student)

    def optimum(rows: Tensor) -> float:
        unit = [v / v.norm(dim=1, keepdim=True) for v in (rows, teacher)]
        cost = 1 - unit[0] @ unit[1].t()
        plan = transport_plan(cost, settings["regularisation"], settings["iterations"])
        return float((plan * cost + settings["regularisation"] * plan * plan.log()).sum())

    for place in ((0, 0), (3, 2)):
        moved = torch.zeros_like(teacher)
        moved[place] = 1e-5
        base = student.detach()
        slope = (optimum(base + moved) - optimum(base - moved)) / 2e-5
        assert slope == pytest.approx(float(got[place]), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-8])
def test_short_vectors_are_finite(size: float) -> None:
    for rows in (slice(0, 1), slice(None)):
        student, teacher = _vectors(2, 5, 4).float()
        student[rows] *= size
        student.requires_grad_()
        value = lckt_loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularisation": 0.0}, "regularisation is above 0, got 0"),
        ({"iterations": 0}, "iterations is at least 1, got 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        building.distillation(partial(LCKT, **arguments))  # type: ignore[arg-type]

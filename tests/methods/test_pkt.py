"""PKT against a float64 loop over the formula, its invariances, zero vectors, refusals."""

import math

import pytest
import torch
from torch import Tensor

from compress.methods import pkt_loss
from compress.methods.pkt import PKT
from tests.methods import building


def _neighbours(rows: list[list[float]]) -> list[list[float]]:
    units = [[x / (math.hypot(*row) + 1e-7) for x in row] for row in rows]
    similar = [
        [(1 + sum(x * y for x, y in zip(a, b, strict=True))) / 2 for b in units] for a in units
    ]
    return [[s / sum(row) for s in row] for row in similar]


def _oracle(student: Tensor, teacher: Tensor) -> float:
    terms = [
        p * math.log((p + 1e-7) / (q + 1e-7))
        for ps, qs in zip(_neighbours(teacher.tolist()), _neighbours(student.tolist()), strict=True)
        for p, q in zip(ps, qs, strict=True)
    ]
    return sum(terms) / len(student) ** 2


def test_equals_the_formula_with_unequal_widths() -> None:
    student, teacher = (torch.randn(7, width, dtype=torch.float64) for width in (3, 6))
    got = pkt_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-10)


def test_the_teachers_neighbourhood_weighs_the_logarithm() -> None:
    # Neighbourhoods (1/2, 1/2) against (2/3, 1/3).
    parallel = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    orthogonal = torch.eye(2, dtype=torch.float64)
    divergence = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert float(pkt_loss(parallel, orthogonal)) == pytest.approx(divergence / 2, rel=1e-6)
    reverse = 1 / 2 * math.log(3 / 4) + 1 / 2 * math.log(3 / 2)
    assert float(pkt_loss(orthogonal, parallel)) == pytest.approx(reverse / 2, rel=1e-6)


def test_zero_for_rotated_and_scaled_samples() -> None:
    features = torch.randn(5, 4, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    scales = torch.tensor([[0.5], [1], [2], [3], [9]], dtype=torch.float64)
    for other in (features, features @ rotation, scales * features):
        assert float(pkt_loss(other, features)) == pytest.approx(0, abs=1e-8)
    assert float(pkt_loss(features + 3, features)) > 1e-4


def test_zero_vectors_have_a_finite_gradient() -> None:
    student = torch.randn(4, 3)
    student[1] = 0
    loss = pkt_loss(student.requires_grad_(), torch.randn(4, 3))
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()


def test_a_batch_of_one_has_the_term_zero_and_no_gradient() -> None:
    student = torch.randn(1, 3, requires_grad=True)
    loss = pkt_loss(student, torch.randn(1, 5))
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0
    torch.testing.assert_close(gradient, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher"):
        PKT(building.context(student, teachers))

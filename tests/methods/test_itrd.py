"""ITRD against float64 loops over the formulas, its floor, dead dimensions, one image, refusals."""

import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import itrd_correlation_loss, itrd_information_loss, itrd_loss
from compress.methods.itrd import ITRD
from tests.methods import building


def _vectors(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _correlation_oracle(student: Tensor, teacher: Tensor, order: float) -> float:
    total = 0.0
    for own, known in zip(student.t().tolist(), teacher.t().tolist(), strict=True):
        means = statistics.fmean(own), statistics.fmean(known)
        deviations = statistics.stdev(own), statistics.stdev(known)
        pairs = zip(own, known, strict=True)
        products = [(a - means[0]) * (b - means[1]) for a, b in pairs]
        correlation = sum(products) / len(own) / deviations[0] / deviations[1]
        total += abs(1 - correlation) ** (2 * order)
    return math.log2(total)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def _information_oracle(student: Tensor, teacher: Tensor) -> float:
    own, known = student.tolist(), teacher.tolist()
    images = range(len(own))
    total = 0.0
    for i in images:
        for j in images:
            own_cosine, known_cosine = _cosine(own[i], own[j]), _cosine(known[i], known[j])
            total += (own_cosine / len(own)) ** 2
            total -= (own_cosine * known_cosine / len(own)) ** 2
    return total


@pytest.mark.parametrize("order", [0.5, 1.01, 1.5])
def test_correlation_equals_the_formula(order: float) -> None:
    student, teacher = _vectors(2, 7, 5)
    got = itrd_correlation_loss(student, teacher, order=order)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_correlation_oracle(student, teacher, order), rel=1e-10)


def test_information_equals_the_formula_for_unequal_widths() -> None:
    student, teacher = _vectors(6, 3), _vectors(6, 5)
    expected = _information_oracle(student, teacher)
    assert float(itrd_information_loss(student, teacher)) == pytest.approx(expected, rel=1e-10)


def test_the_whole_is_their_weighted_sum() -> None:
    student, teacher = _vectors(2, 6, 4)
    parts = _correlation_oracle(student, teacher, 1.01), _information_oracle(student, teacher)
    assert float(itrd_loss(student, teacher)) == pytest.approx(2 * parts[0] + parts[1], rel=1e-10)


def test_correlation_of_equal_vectors_is_at_its_floor() -> None:
    vectors = _vectors(8, 5)
    floor = math.log2(5 * (1 / 8) ** 2.02)
    for other in (vectors, 3 * vectors + 1):
        assert float(itrd_correlation_loss(other, vectors)) == pytest.approx(floor, rel=1e-10)
    assert float(itrd_correlation_loss(vectors.flip(0), vectors)) > floor


def test_information_of_a_teacher_that_sees_no_difference_is_zero() -> None:
    assert float(itrd_information_loss(_vectors(6, 4), torch.ones(6, 3).double())) == pytest.approx(
        0, abs=1e-15
    )


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-4])
@pytest.mark.parametrize("images", [1, 6])
def test_dead_dimensions_and_rows_are_finite_with_a_bounded_gradient(
    size: float, images: int
) -> None:
    for which in ("dimension", "row", "all"):
        student, teacher = _vectors(2, images, 4).float()
        for vectors in (student, teacher):
            dead = {"dimension": (slice(None), 0), "row": (0,), "all": (slice(None),)}[which]
            vectors[dead] *= size
        student.requires_grad_()
        value = itrd_loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert size or float(gradient.abs().max()) < 1e2


def test_one_image_has_no_correlation() -> None:
    one = _vectors(2, 1, 4)
    assert float(itrd_correlation_loss(*one)) == 2


@pytest.mark.parametrize(
    ("arguments", "terms"),
    [({}, {"correlation", "information"}), ({"information_weight": 0.0}, {"correlation"})],
)
def test_terms_of_weight_zero_are_not_computed(arguments: Any, terms: set[str]) -> None:
    module = building.distillation(partial(ITRD, **arguments))  # type: ignore[arg-type]
    assert terms <= {*module(building.first_batch(module))}


def test_networks_of_one_width_need_no_embedding_for_the_pairs() -> None:
    student, teachers = building.networks(student="resnet8", teacher="resnet14")
    method = ITRD(building.context(student, teachers), correlation_weight=0.0)
    assert [*method.parameters()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0.0}, "order is above 0, got 0"),
        ({"correlation_weight": -1.0}, r"at least 0 and not both 0, got \(-1.0, 1.0\)"),
        ({"correlation_weight": 0.0, "information_weight": 0.0}, "not both 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        building.distillation(partial(ITRD, **arguments))  # type: ignore[arg-type]

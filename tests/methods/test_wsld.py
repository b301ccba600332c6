"""WSLD against a float64 loop over the formula, the limits of its weights, constant weights."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distill import Distillation
from compress.methods import METHODS, LossWeights, kd_loss, wsld_loss
from compress.methods.contract import first, logits_of
from compress.methods.wsld import WSLD
from tests.methods import building

LABELS = torch.tensor([0, 3, 2, 4, 0, 1])


def _logits(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(*shape, generator=draw, dtype=torch.float64)


def _softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def _weight(own: list[float], known: list[float], label: int) -> float:
    student, teacher = (-math.log(_softmax(row, 1)[label]) for row in (own, known))
    return 1 - math.exp(-student / (teacher + 1e-7))


@pytest.mark.parametrize(("temperature", "alpha"), [(4, 2.25), (2, 2.5), (1, 1)])
def test_equals_the_formula(temperature: float, alpha: float) -> None:
    student, teacher = _logits(2, 6, 5)
    total = 0.0
    for own, known, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        pairs = zip(_softmax(known, temperature), _softmax(own, temperature), strict=True)
        total -= _weight(own, known, label) * sum(p * math.log(q) for p, q in pairs)
    got = wsld_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    assert float(got) == pytest.approx(alpha * temperature**2 * total / 6, rel=1e-12)


def test_the_gradient_is_that_of_weighed_divergences_with_constant_weights() -> None:
    student, teacher = _logits(2, 6, 5)
    student.requires_grad_()
    (got,) = torch.autograd.grad(wsld_loss(student, teacher, LABELS), student)
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    each = [
        _weight(own, known, label) * kd_loss(student[n : n + 1], teacher[n : n + 1], 4.0)
        for n, (own, known, label) in enumerate(rows)
    ]
    (expected,) = torch.autograd.grad(2.25 * torch.stack(each).mean(), student)
    torch.testing.assert_close(got, expected)


def test_weighs_by_how_much_surer_of_the_label_the_teacher_is() -> None:
    unsure, sure, wrong = torch.tensor([[0.0, 0, 0], [20, 0, 0], [-20, 0, 0]]).double().split(1)
    label = torch.tensor([0])

    def weight(own: Tensor, known: Tensor) -> float:
        soft = -((known / 4).softmax(1) * (own / 4).log_softmax(1)).sum()
        return float(wsld_loss(own, known, label) / (2.25 * 16 * soft))

    assert weight(unsure, sure) == pytest.approx(1)
    assert weight(unsure, unsure) == pytest.approx(1 - math.exp(-1))
    assert weight(unsure, wrong) == pytest.approx(1 - math.exp(-math.log(3) / 20.6931), rel=1e-3)
    assert weight(sure, unsure) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    # Sure of the label, of another class, of two at once, and of none.
    rows = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [1, 1, -1], [0, 0, 0]])
    student = (1e4 * rows).to(dtype).requires_grad_()
    for teacher in (student.detach(), student.detach().flip(0), -student.detach()):
        value = wsld_loss(student, teacher, torch.zeros(4, dtype=torch.long))
        (gradient,) = torch.autograd.grad(value, student)
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert float(gradient.abs().max()) <= 2.25 * 4 / 4 * 1.01  # alpha T / N


def test_published_weights() -> None:
    needs = WSLD.needs({})
    assert set(needs.protocols.values()) == {LossWeights(ce=1, kd=0, method=1)}
    assert needs.reads_labels


def _module(**arguments: Any) -> Distillation:
    return building.distillation(partial(WSLD, **arguments))  # type: ignore[arg-type]


def test_arguments_reach_the_loss() -> None:
    module = _module(temperature=2.0, alpha=2.5)
    batch = building.first_batch(module)
    own, (known,) = module._student_views(batch), module._teacher_views(batch)
    logits = logits_of(first(own)), logits_of(first(known))
    expected = wsld_loss(*logits, batch.labels, temperature=2.0, alpha=2.5)
    torch.testing.assert_close(module.method(own, [known], batch)["wsld"], expected)


def test_several_teachers_count_the_same() -> None:
    module = building.distillation(METHODS["wsld"], teachers=2)
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    each = [module.method(own, [views], batch)["wsld"] for views in known]
    torch.testing.assert_close(module.method(own, known, batch)["wsld"], sum(each) / 2)


@pytest.mark.parametrize("name", ["temperature", "alpha"])
def test_refusals(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is above 0, got 0.0"):
        _module(**{name: 0.0})

"""AVEG against a float64 loop, against `kd`, and the gradient of averaged predictions."""

import math

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS, aveg_loss, kd_loss
from compress.methods.aveg import AVEG
from tests.methods import building


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def divergence(known: list[float], own: list[float], temperature: float) -> float:
    """T^2 KL of one sample's softened predictions, by a loop."""
    pairs = zip(softmax(known, temperature), softmax(own, temperature), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


def test_equals_the_formula() -> None:
    student, *teachers = 3 * torch.randn(4, 7, 5, dtype=torch.float64)
    total = 0.0
    for teacher in teachers:
        for own, known in zip(student.tolist(), teacher.tolist(), strict=True):
            total += divergence(known, own, 4.0) / (len(teachers) * len(student))
    assert float(aveg_loss(student, teachers, 4.0)) == pytest.approx(total, rel=1e-12)


def test_the_gradient_is_that_of_averaged_predictions_and_not_of_averaged_logits() -> None:
    known = 3 * torch.randn(3, 6, 4, dtype=torch.float64)
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, student)[0]

    got = gradient(aveg_loss(student, list(known), 4.0))
    predictions = (known / 4).softmax(2).mean(0)
    torch.testing.assert_close(got, gradient(kd_loss(student, 4 * predictions.log(), 4.0)))
    assert not torch.allclose(got, gradient(kd_loss(student, known.mean(0), 4.0)), rtol=1e-3)


def test_is_what_kd_gives_with_several_teachers_bit_for_bit() -> None:
    terms = []
    for name in ("aveg", "kd"):
        module = building.distillation(METHODS[name], teachers=3)
        terms.append(module(building.first_batch(module)))
    assert torch.equal(terms[0]["aveg"], terms[1]["kd"])
    assert torch.equal(terms[0]["ce"], terms[1]["ce"])


def test_temperature_must_be_positive() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="above 0"):
        AVEG(building.context(student, teachers), temperature=0.0)

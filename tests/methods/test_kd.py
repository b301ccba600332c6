"""KD against a float64 loop over the formula, and its limits."""

import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch

from compress.methods import METHODS, LossWeights, kd_loss
from compress.methods.contract import first, logits_of
from compress.methods.kd import KD
from compress.recipe.signatures import check
from tests.methods import building


def _oracle(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(z / temperature) for z in row]
        return [p / sum(powers) for p in powers]

    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(s), softmax(t)
        total += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_equals_the_formula(temperature: float) -> None:
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64) * 3
    got = kd_loss(student, teacher, temperature)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, temperature), rel=1e-12)


def test_gradient_is_that_of_cross_entropy_with_soft_targets() -> None:
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 4, dtype=torch.float64)
    temperature = 3.0
    (got,) = torch.autograd.grad(kd_loss(student, teacher, temperature), student)
    # d/dz T^2 KL = T (q - p) / N, the closed form of Hinton et al., equation 2.
    q, p = (z.detach() / temperature for z in (student, teacher))
    expected = temperature * (q.softmax(1) - p.softmax(1)) / 6
    torch.testing.assert_close(got, expected)


def test_zero_when_logits_are_equal_or_shifted() -> None:
    logits = torch.randn(5, 9)
    assert float(kd_loss(logits, logits, 4.0)) == pytest.approx(0, abs=1e-6)
    assert float(kd_loss(logits + 7, logits, 4.0)) == pytest.approx(0, abs=1e-5)


def test_high_temperature_is_half_the_squared_distance_of_centred_logits() -> None:
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = centred.square().mean(1).mean() / 2
    assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(float(expected), rel=1e-3)


def test_extreme_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert torch.isfinite(kd_loss(student, teacher, 1.0))


def test_temperature_must_be_positive() -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="above 0"):
        KD(building.context(student, teachers), temperature=0.0)


def test_of_pixels_it_is_the_mean_over_all_of_them() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=draw, dtype=torch.float64)
    rows = [maps.permute(0, 2, 3, 1).reshape(-1, 3) for maps in (student, teacher)]
    torch.testing.assert_close(kd_loss(student, teacher, 2.0), kd_loss(*rows, 2.0))


def _term_and_logits(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The term of a batch, and the logits of student and teacher that it is of."""
    module = building.distillation(partial(KD, **arguments))  # type: ignore[arg-type]
    batch = building.first_batch(module)
    own, (known,) = module._student_views(batch), module._teacher_views(batch)
    logits = logits_of(first(own)), logits_of(first(known))
    return module.method(own, [known], batch)["kd"].detach(), *logits


def _standardized(logits: torch.Tensor) -> torch.Tensor:
    rows = [
        [(z - statistics.fmean(row)) / statistics.stdev(row) for z in row]
        for row in logits.tolist()
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize(("given", "temperature"), [(None, 2.0), (4.0, 4.0), (3.0, 3.0)])
def test_standardized_logits_take_a_temperature_of_two_unless_told(
    given: float | None, temperature: float
) -> None:
    got, *logits = _term_and_logits(standardize=True, temperature=given)
    own, known = map(_standardized, logits)
    assert float(got) == pytest.approx(_oracle(own, known, temperature), rel=1e-4)


def test_without_them_every_bit_is_that_of_a_temperature_of_four() -> None:
    for arguments in ({}, {"temperature": None}, {"temperature": 4.0}, {"standardize": False}):
        got, *logits = _term_and_logits(**arguments)
        assert torch.equal(got, kd_loss(*logits, 4.0))
        assert KD.needs(arguments).protocols == KD.protocols


def test_standardized_logits_have_published_weights_of_their_own() -> None:
    protocols = KD.needs({"standardize": True}).protocols
    assert protocols == dict.fromkeys(KD.protocols, LossWeights(ce=0.1, kd=0, method=9))
    assert KD.protocols["crd"] == LossWeights(ce=0.1, kd=0, method=0.9)


def test_of_pixels_each_is_standardized() -> None:
    dense = type("DenseKD", (KD,), {"images": False})
    module = building.distillation(partial(dense, standardize=True))  # type: ignore[arg-type]
    batch = building.first_batch(module)
    own, (known,) = module._student_views(batch), module._teacher_views(batch)
    rows = [
        logits_of(first(views)).permute(0, 2, 3, 1).reshape(-1, building.CLASSES)
        for views in (own, known)
    ]
    expected = _oracle(*map(_standardized, rows), 2.0)
    got = module.method(own, [known], batch)["kd"].detach()
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_the_mean_of_several_teachers_knows_no_standardized_logits() -> None:
    (problem,) = check(METHODS["aveg"], {"standardize": True}, "method")
    assert "unknown key" in problem

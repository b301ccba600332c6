"""AE-KD against a float64 loop and a search for its weights, its gradient and its limits."""

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS, aekd_loss, kd_loss
from compress.methods.aekd import AEKD, logit_gradients
from compress.methods.blocks.min_norm import min_norm_weights
from tests.methods import building
from tests.methods.test_aveg import divergence, softmax


def _logits(teachers: int = 3) -> tuple[Tensor, list[Tensor]]:
    student, *known = 2 * torch.randn(1 + teachers, 6, 4, dtype=torch.float64)
    return student, known


def _searched(gradients: list[list[float]], largest: float) -> list[float]:
    """The weights of three gradients' shortest mixture, on a grid."""
    best, found = float("inf"), [0.0]
    steps = 100
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            weights = [i / steps, j / steps, (steps - i - j) / steps]
            if max(weights) > largest + 1e-12:
                continue
            mixture = [
                sum(a * g[k] for a, g in zip(weights, gradients, strict=True))
                for k in range(len(gradients[0]))
            ]
            length = sum(value**2 for value in mixture)
            if length < best:
                best, found = length, weights
    return found


def test_equals_the_formula() -> None:
    student, known = _logits()
    module = building.distillation(AEKD, teachers=3)
    assert isinstance(module.method, AEKD)
    gradients = []
    for teacher in known:
        columns = [0.0] * student.shape[1]
        for own, one in zip(student.tolist(), teacher.tolist(), strict=True):
            pairs = zip(softmax(own, 4.0), softmax(one, 4.0), strict=True)
            columns = [c + q - p for c, (q, p) in zip(columns, pairs, strict=True)]
        gradients.append(columns)
    got = logit_gradients(student, known, 4.0)
    torch.testing.assert_close(got, torch.tensor(gradients, dtype=torch.float64))
    weights = min_norm_weights(got, 0.6)
    assert weights.tolist() == pytest.approx(_searched(gradients, 0.6), abs=0.01)
    expected = 0.0
    for share, teacher in zip(weights.tolist(), known, strict=True):
        rows = zip(teacher.tolist(), student.tolist(), strict=True)
        expected += share * sum(divergence(one, own, 4.0) for one, own in rows) / len(student)
    assert float(aekd_loss(student, known, weights, 4.0)) == pytest.approx(expected, rel=1e-12)


def test_the_gradients_are_those_of_the_losses() -> None:
    student, known = _logits()
    student.requires_grad_(True)
    for teacher, got in zip(known, logit_gradients(student, known, 3.0), strict=True):
        (gradient,) = torch.autograd.grad(kd_loss(student, teacher, 3.0), student)
        torch.testing.assert_close(3.0 * got / len(student), gradient.sum(0))


def test_the_weights_are_constants() -> None:
    student, known = _logits()
    student.requires_grad_(True)
    weights = min_norm_weights(logit_gradients(student, known, 4.0), 0.6)
    (got,) = torch.autograd.grad(aekd_loss(student, known, weights, 4.0), student)
    expected = torch.zeros_like(got)
    for share, teacher in zip(weights, known, strict=True):
        expected += share * torch.autograd.grad(kd_loss(student, teacher, 4.0), student)[0]
    torch.testing.assert_close(got, expected)


def test_one_teacher_is_kd_and_the_smallest_tolerance_is_aveg() -> None:
    for count, name in ((1, "kd"), (3, "aveg")):
        module = building.distillation(METHODS[name], teachers=count)
        expected = module(building.first_batch(module))[name].detach()
        other = building.distillation(AEKD, teachers=count)
        assert isinstance(other.method, AEKD)
        other.method.tolerance = 1 / count
        got = other(building.first_batch(other))["aekd"].detach()
        assert float(got) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"tolerance": 0.0}, "above 0 and at most 1, got 0"),
        ({"tolerance": 1.5}, "above 0 and at most 1, got 1.5"),
    ],
)
def test_impossible_values_are_refused_in_words(arguments: dict[str, float], message: str) -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match=message):
        AEKD(building.context(student, teachers), **arguments)  # type: ignore[arg-type]

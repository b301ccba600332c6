"""DKD against a float64 loop over the formula, its relation to KD, the warm-up and its limits."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distill import Distillation
from compress.methods import METHODS, LossWeights, dkd_loss, kd_loss
from compress.methods.blocks.logits import standardized
from compress.methods.contract import first, logits_of
from compress.methods.dkd import DKD
from tests.methods import building

LABELS = torch.tensor([0, 3, 2, 4, 0, 1])


def _logits(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(*shape, generator=draw, dtype=torch.float64)


def _divergence(known: list[float], own: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(known, own, strict=True))


def _oracle(student: Tensor, teacher: Tensor, temperature: float, alpha: float, beta: float) -> Any:
    total = 0.0
    for rows in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        *networks, label = rows
        binary, others = [], []
        for row in networks:
            powers = [math.exp(z / temperature) for z in row]
            of_others = [p for k, p in enumerate(powers) if k != label]
            binary.append([powers[label] / sum(powers), sum(of_others) / sum(powers)])
            others.append([p / sum(of_others) for p in of_others])
        total += alpha * _divergence(binary[1], binary[0]) + beta * _divergence(*others[::-1])
    return temperature**2 * total / len(student)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4, 1, 8), (1, 0.5, 2), (2, 0, 1)])
def test_equals_the_formula(temperature: float, alpha: float, beta: float) -> None:
    student, teacher = _logits(2, 6, 5)
    got = dkd_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha, beta=beta)
    expected = _oracle(student, teacher, temperature, alpha, beta)
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_kd_is_both_parts_if_the_others_weigh_what_the_teacher_leaves_them() -> None:
    student, teacher = _logits(2, 1, 5)
    left = 1 - float((teacher / 4).softmax(1)[0, 3])
    parts = dkd_loss(student, teacher, LABELS[1:2], beta=left)
    torch.testing.assert_close(parts, kd_loss(student, teacher, 4.0))


def test_zero_when_logits_are_equal_or_shifted() -> None:
    logits = _logits(6, 5)
    assert float(dkd_loss(logits, logits, LABELS)) == pytest.approx(0, abs=1e-14)
    assert float(dkd_loss(logits + 7, logits, LABELS)) == pytest.approx(0, abs=1e-13)


def test_the_label_does_not_show_among_the_others() -> None:
    student, teacher = _logits(2, 6, 5)
    raised = student.scatter_add(1, LABELS[:, None], torch.full((6, 1), 5.0, dtype=torch.float64))
    values = [dkd_loss(s, teacher, LABELS, alpha=0) for s in (student, raised)]
    torch.testing.assert_close(*values)


def test_gradients_are_right_and_none_is_lost_to_the_infinite_logit() -> None:
    student, teacher = _logits(2, 6, 5)
    assert torch.autograd.gradcheck(
        lambda s: dkd_loss(s, teacher, LABELS), student.clone().requires_grad_()
    )


@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(size: float, dtype: torch.dtype) -> None:
    # Sure of the label, of another class, and of two classes at once.
    rows = [[1.0, -1, -1], [-1, 1, -1], [1, 1, -1]]
    student = (size * torch.tensor(rows)).to(dtype).requires_grad_()
    for teacher in (student.detach(), student.detach().flip(0), -student.detach()):
        value = dkd_loss(student, teacher, torch.tensor([0, 0, 0]), temperature=1.0)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_of_two_classes_the_label_is_all_there_is() -> None:
    student, teacher = _logits(2, 6, 2)
    labels = LABELS % 2
    assert float(dkd_loss(student, teacher, labels, alpha=0)) == 0
    torch.testing.assert_close(dkd_loss(student, teacher, labels), kd_loss(student, teacher, 4.0))


def _module(**arguments: Any) -> Distillation:
    return building.distillation(partial(DKD, **arguments))  # type: ignore[arg-type]


def _terms(module: Distillation, epoch: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The term in an epoch, and what it is of: logits of both and labels."""
    batch = replace(building.first_batch(module), epoch=epoch)
    own, (known,) = module._student_views(batch), module._teacher_views(batch)
    term = module.method(own, [known], batch)["dkd"]
    return term, logits_of(first(own)), logits_of(first(known)), batch.labels


def test_warms_up_over_the_first_epochs() -> None:
    module = _module(warm_up_epochs=4)
    whole, *rest = _terms(module)
    torch.testing.assert_close(whole, dkd_loss(*rest))
    for epoch, share in enumerate([0.25, 0.5, 0.75, 1, 1]):
        torch.testing.assert_close(_terms(module, epoch)[0], share * whole)


def test_standardized_logits_take_a_temperature_of_two_unless_told() -> None:
    for given, temperature in ((None, 2.0), (3.0, 3.0)):
        got, own, known, labels = _terms(_module(standardize=True, temperature=given))
        expected = dkd_loss(standardized(own), standardized(known), labels, temperature=temperature)
        torch.testing.assert_close(got, expected)


def test_published_weights() -> None:
    for arguments, weight in (({}, 1), ({"standardize": True}, 9)):
        protocols = DKD.needs(arguments).protocols
        assert set(protocols.values()) == {LossWeights(ce=1, kd=0, method=weight)}
        assert DKD.needs(arguments).reads_labels


def test_several_teachers_count_the_same() -> None:
    module = building.distillation(METHODS["dkd"], teachers=2)
    batch = replace(building.first_batch(module), epoch=30)
    own, known = module._student_views(batch), module._teacher_views(batch)
    each = [module.method(own, [views], batch)["dkd"] for views in known]
    torch.testing.assert_close(module.method(own, known, batch)["dkd"], sum(each) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is above 0, got 0"),
        ({"alpha": -1.0}, "at least 0 and not both 0, got -1.0, 8.0"),
        ({"alpha": 0.0, "beta": 0.0}, "not both 0"),
        ({"warm_up_epochs": -1}, "warm_up_epochs is at least 0, got -1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**arguments)

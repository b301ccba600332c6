"""IPWD against a float64 loop over the formula, its weights, what the second classifier moves."""

import math
import statistics
from functools import partial

import pytest
import torch
from torch import Tensor

from compress.methods import ipwd_loss, ipwd_weights, kd_loss
from compress.methods.ipwd import IPWD
from tests.methods import building

LABELS = torch.tensor([0, 3, 2, 3, 1])


def _logits(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(*shape, generator=draw, dtype=torch.float64)


def _softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def _of_label(row: list[float], label: int) -> float:
    mean, deviation = statistics.fmean(row), statistics.stdev(row)
    return -math.log(_softmax([(z - mean) / (deviation + 1e-7) for z in row])[label])


def _weights(own: Tensor, labelled: Tensor) -> list[float]:
    rows = zip(own.tolist(), labelled.tolist(), LABELS.tolist(), strict=True)
    raw = [1 + _of_label(other, y) / _of_label(imitated, y) for imitated, other, y in rows]
    return [w / statistics.fmean(raw) for w in raw]


def test_weights_equal_the_formula() -> None:
    own, labelled = _logits(2, 5, 4)
    got = ipwd_weights(own, labelled, LABELS)
    assert got.tolist() == pytest.approx(_weights(own, labelled), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_equals_the_formula(temperature: float) -> None:
    own, known = _logits(2, 5, 4)
    weights = torch.tensor([0.5, 2, 1, 0.1, 1.4]).double()
    expected = 0.0
    for n, weight in enumerate(weights.tolist()):
        p, q = (_softmax([z / temperature for z in rows[n].tolist()]) for rows in (known, own))
        pairs = zip(p, q, strict=True)
        expected += weight * temperature**2 * sum(a * math.log(a / b) for a, b in pairs) / 5
    got = ipwd_loss(own, known, weights, temperature=temperature)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_is_kd_where_both_classifiers_agree() -> None:
    own, known = _logits(2, 5, 4)
    weights = ipwd_weights(own, own, LABELS)
    torch.testing.assert_close(weights, torch.ones(5).double())
    torch.testing.assert_close(ipwd_loss(own, known, weights), kd_loss(own, known, 4.0))


def test_an_image_that_is_learnt_from_labels_alone_counts_more_where_imitation_knows_it() -> None:
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0.0, 1, 2, 3])
    weights = ipwd_weights(
        torch.stack([sure, unsure]), torch.stack([unsure, sure]), LABELS[:1].repeat(2)
    )
    assert weights[0] > 1 > weights[1]


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e4])
def test_extreme_logits_are_finite(size: float) -> None:
    own, labelled = size * _logits(2, 5, 4).float()
    weights = ipwd_weights(own, labelled, LABELS)
    assert torch.isfinite(weights).all()
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)


def test_the_second_classifier_learns_from_labels_and_moves_nothing_else() -> None:
    module = building.distillation(IPWD)
    terms = module(building.first_batch(module))
    own, student = [*module.method.parameters()], [*module.student.parameters()]
    of_soft = torch.autograd.grad(terms["ipwd"], own, retain_graph=True, allow_unused=True)
    assert of_soft == (None, None)
    of_labels = torch.autograd.grad(terms["labelled"], [*own, *student], allow_unused=True)
    assert [g is not None for g in of_labels] == [True] * len(own) + [False] * len(student)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="temperature is above 0, got 0"):
        building.distillation(partial(IPWD, temperature=0.0))  # type: ignore[arg-type]

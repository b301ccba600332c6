"""MLKD against float64 loops over the formulas, its masks and views, standardised logits."""

import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import mlkd_loss
from compress.methods.contract import first, logits_of
from compress.methods.mlkd import MLKD, TEMPERATURES
from tests.methods import building

Rows = list[list[float]]


def _logits(*shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [*(3 * torch.randn(2, *shape, generator=draw, dtype=torch.float64))]


def _softmax(rows: Rows, temperature: float) -> Rows:
    found = []
    for row in rows:
        powers = [math.exp(z / temperature) for z in row]
        found.append([p / sum(powers) for p in powers])
    return found


def _standardized(rows: Rows) -> Rows:
    return [
        [(z - statistics.fmean(row)) / (statistics.stdev(row) + 1e-7) for z in row] for row in rows
    ]


def _divergences(own: Rows, known: Rows, temperature: float) -> list[float]:
    q, p = _softmax(own, temperature), _softmax(known, temperature)
    pairs = zip(p, q, strict=True)
    return [
        temperature**2 * sum(a * math.log(a / b) for a, b in zip(*rows, strict=True))
        for rows in pairs
    ]


def _gram_rows(own: Rows, known: Rows, temperature: float, *, classes: bool) -> list[float]:
    """Of each row of the difference of two Gram matrices, the squares over their number."""
    both = [_softmax(rows, temperature) for rows in (own, known)]
    if classes:
        both = [[*map(list, zip(*rows, strict=True))] for rows in both]
    (own, known), count = both, range(len(both[0]))

    def product(rows: Rows, i: int, j: int) -> float:
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True))

    return [
        sum((product(known, i, j) - product(own, i, j)) ** 2 for j in count) / len(count)
        for i in count
    ]


def _oracle(
    student: list[Tensor], teacher: list[Tensor], *, masks: str, standardize: bool
) -> float:
    own, known = ([z.tolist() for z in views] for views in (student, teacher))
    sure = [max(row) for row in _softmax(known[0], 1)]
    mass = [sum(column) for column in zip(*_softmax(known[0], 1), strict=True)]
    m_n = [float(s <= statistics.median(sure)) for s in sure]
    m_k = [float(s <= statistics.median(mass)) for s in mass]
    read = [*map(_standardized, own)] if standardize else own
    of = [*map(_standardized, known)] if standardize else known
    total = 0.0
    for number, temperature in enumerate(TEMPERATURES):
        weak, strong = (_divergences(read[v], of[v], temperature) for v in (0, 1))
        batch, classes = (
            _gram_rows(own[0], known[0], temperature, classes=c) for c in (False, True)
        )
        if masks == "paper":
            for rows in (weak, strong):
                total += statistics.fmean(m * r for m, r in zip(m_n, rows, strict=True))
            total += sum(m * r for m, r in zip(m_n, batch, strict=True))
            total += sum(m * r for m, r in zip(m_k, classes, strict=True))
        else:
            share_n, share_k = statistics.fmean(m_n), statistics.fmean(m_k)
            total += share_n * statistics.fmean(weak)
            total += statistics.fmean(strong if number < 3 else weak)
            total += share_n * sum(batch) + share_k * sum(classes)
    return total


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("masks", ["released", "paper"])
@pytest.mark.parametrize("shape", [(6, 4), (7, 5)])
def test_equals_the_formula(masks: Any, standardize: bool, shape: tuple[int, int]) -> None:
    student, teacher = _logits(*shape), [z.flip(0) for z in _logits(*shape)]
    got = mlkd_loss(student, teacher, masks=masks, standardize=standardize)
    assert got.dtype == torch.float64
    expected = _oracle(student, teacher, masks=masks, standardize=standardize)
    assert float(got) == pytest.approx(expected, rel=1e-6 if standardize else 1e-10)


@pytest.mark.parametrize("masks", ["released", "paper"])
def test_zero_when_predictions_are_equal(masks: Any) -> None:
    logits = _logits(6, 5)
    assert float(mlkd_loss([z + 3 for z in logits], logits, masks=masks)) == pytest.approx(
        0, abs=1e-12
    )


def test_extreme_logits_have_a_finite_gradient() -> None:
    student = [1e4 * z.float().requires_grad_() for z in _logits(6, 5)]
    value = mlkd_loss(student, [torch.zeros(6, 5), torch.zeros(6, 5)])
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, student))


def _module(**arguments: Any) -> tuple[building.Distillation, MLKD]:
    module = building.distillation(partial(MLKD, **arguments))  # type: ignore[arg-type]
    assert isinstance(module.method, MLKD)
    return module, module.method


def test_both_networks_see_a_weak_and_a_strong_view() -> None:
    module, method = _module()
    assert [v.augment for v in method.views] == [None, "rand_augment"]
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    assert all(taps is not None for taps in (*own, *known[0]))
    logits = [[t.tensor("logits") for t in v if t is not None] for v in (own, known[0])]
    expected = mlkd_loss(*logits)
    torch.testing.assert_close(method(own, known, batch)["mlkd"], expected)


def test_hard_labels_are_of_both_views() -> None:
    module, method = _module()
    batch = building.first_batch(module)
    views = module._student_views(batch)
    (weak, strong) = [taps.tensor("logits").sum() for taps in views if taps is not None]
    got = method.hard_loss(views, batch, lambda logits, _: logits.sum())
    torch.testing.assert_close(got, weak + strong)
    assert torch.equal(method.logits(first(views)), logits_of(first(views)))


def test_standardized_logits_have_weights_and_a_temperature_of_their_own() -> None:
    assert [*MLKD.needs({"standardize": True}).protocols["crd"].__dict__.values()] == [0.1, 0, 9]
    assert [*MLKD.needs({}).protocols["crd"].__dict__.values()] == [0.1, 0, 0.9]
    assert _module(standardize=True)[1].temperatures == (2, 3, 5, 2, 6)
    assert _module(standardize=True, temperatures=[4.0])[1].temperatures == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatures": []}, r"one or more above 0, got \[\]"),
        ({"temperatures": [4.0, 0.0]}, r"one or more above 0, got \[4\.0, 0\.0\]"),
        ({"masks": "none"}, "masks is released or paper, got none"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**arguments)

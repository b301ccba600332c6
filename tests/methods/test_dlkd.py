"""DLKD against float64 loops, its four turns as one batch, its weightings, no labels, refusals."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import (
    LossWeights,
    dlkd_align_loss,
    dlkd_correlation_loss,
    dlkd_loss,
    dlkd_supervised_loss,
)
from compress.methods.dlkd import DLKD
from tests.methods import building

SMALL = {"hidden_ratio": 0.1, "feature_width": 5}
PLAIN = LossWeights(ce=1, kd=0, method=1)
LABELS = torch.tensor([0, 1, 0, 2])


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def _shares(numbers: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in numbers]
    return [e / sum(exponentials) for e in exponentials]


def _align(student: Tensor, teacher: Tensor) -> float:
    pairs = [*zip(student.tolist(), teacher.tolist(), strict=True)]
    return sum(2 - 2 * _cosine(s, t) for s, t in pairs) / len(pairs)


def _correlation(student: Tensor, teacher: Tensor, images: int, tau: float = 0.5) -> float:
    own, known = student.tolist(), teacher.tolist()
    total = 0.0
    for a in range(images, len(own)):
        p_s, p_t = (
            _shares([_cosine(rows[a], rows[n]) / tau for n in range(images)])
            for rows in (own, known)
        )
        total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    return total / (len(own) - images)


def _supervised(student: Tensor, teacher: Tensor, labels: Tensor, pairs: str) -> float:
    rows = [*student.tolist(), *teacher.tolist()]
    classes, half = labels.tolist() * 2, len(student)
    total = 0.0
    for i in range(len(rows)):
        if pairs == "all":
            others = [k for k in range(len(rows)) if k != i]
        else:
            others = [k for k in range(len(rows)) if (k < half) != (i < half)]
        whole = sum(math.exp(_cosine(rows[i], rows[k]) / 0.07) for k in others)
        positives = [j for j in others if classes[j] == classes[i]]
        logs = [math.log(math.exp(_cosine(rows[i], rows[j]) / 0.07) / whole) for j in positives]
        total -= sum(logs) / len(logs)
    return total / len(rows)


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("pairs", ["all", "across"])
def test_equals_the_formula(pairs: str) -> None:
    aligned, teacher, correlated, one, other = (_rows(16, c) for c in (6, 6, 3, 5, 5))
    align = dlkd_align_loss(aligned, teacher)
    correlation = dlkd_correlation_loss(correlated, teacher, 4)
    turned = LABELS.repeat(4)
    supervised = dlkd_supervised_loss(one, other, turned, pairs=pairs)  # type: ignore[arg-type]
    assert {t.dtype for t in (align, correlation, supervised)} == {torch.float64}
    assert float(align) == pytest.approx(_align(aligned, teacher), rel=1e-10)
    assert float(correlation) == pytest.approx(_correlation(correlated, teacher, 4), rel=1e-10)
    assert float(supervised) == pytest.approx(_supervised(one, other, turned, pairs), rel=1e-10)
    if pairs == "all":
        whole = dlkd_loss(aligned, correlated, (one, other), teacher, LABELS, weights=(2, 3, 5))
        assert float(whole) == pytest.approx(float(2 * align + 3 * correlation + 5 * supervised))


def test_eq_3_is_the_squared_distance() -> None:
    student, teacher = _rows(4, 3), _rows(4, 3)
    expected = sum(
        sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    got = dlkd_align_loss(student, teacher, alignment="l2")
    assert float(got) == pytest.approx(expected / 4, rel=1e-12)


def test_alignment_and_correlation_vanish_for_equal_features_of_any_scale() -> None:
    rows = _rows(8, 5)
    assert float(dlkd_align_loss(3 * rows, rows)) == pytest.approx(0, abs=1e-12)
    assert float(dlkd_correlation_loss(3 * rows, rows, 2)) == pytest.approx(0, abs=1e-12)


def test_the_supervised_gradient_is_finite_where_embeddings_are_equal() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss = dlkd_supervised_loss(student, torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()
    assert float(loss.detach()) == pytest.approx(math.log(7), rel=1e-5)


def _module(weights: LossWeights = PLAIN, **arguments: Any) -> building.Distillation:
    build = partial(DLKD, **SMALL, **arguments)
    module = building.distillation(build, weights=weights)  # type: ignore[arg-type]
    module.begin_phase(None, building.first_batch(module))
    return module.train()


def test_four_turns_are_one_student_batch() -> None:
    module = _module().double()
    module._teachers[0].network.double()
    batch = building.first_batch(module)
    batch = replace(batch, images=tuple(view.double() for view in batch.images))
    reference = copy.deepcopy(module)
    terms = module(batch)
    images = torch.cat(batch.images)
    with torch.no_grad():
        expected = _expected(module, reference, images, batch.labels)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(
        expected, rel=1e-9
    )
    # One move of every batch norm, in the student and in the heads, over all 32 rows.
    norms = [m for m in module.modules() if hasattr(m, "num_batches_tracked")]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    state = reference.state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-9, atol=1e-12)


def _expected(
    module: building.Distillation, reference: building.Distillation, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """The terms of 32 images of which 8 are as they are, the others their turns."""
    student = module._tapped.with_network(reference.student)(images)
    known = module._teachers[0](images).tensor("pooled")
    pooled, heads = student.tensor("pooled"), reference.method.heads
    logits = student.tensor("logits")[:8]
    embedded = heads["supervised"](pooled), reference.method.teacher_embedding(known)
    return {
        "ce": float(torch.nn.functional.cross_entropy(logits, labels)),
        "align": 10 * _align(heads["align"](pooled), known),
        "correlation": 20 * _correlation(heads["correlation"](pooled), known, 8),
        "supervised": 0.5 * _supervised(*embedded, labels.repeat(4), "all"),
    }


@pytest.mark.parametrize(
    ("arguments", "terms", "coupled"),
    [
        ({}, {"align": 10, "correlation": 20, "supervised": 0.5}, True),
        (
            {"weighting": "released"},
            {"align": 20, "correlation": 50, "supervised": 1},
            True,
        ),
        ({"labels": False}, {"align": 10, "correlation": 20}, True),
        ({"correlation_weight": 0, "supervised_weight": 0}, {"align": 10}, False),
        ({"align_weight": 0, "correlation_weight": 0}, {"supervised": 0.5}, True),
        (
            {"weighting": "released", "align_weight": 3},
            {"align": 3, "correlation": 50, "supervised": 1},
            True,
        ),
    ],
)
def test_each_weighting_has_its_terms(
    arguments: dict[str, Any], terms: dict[str, float], coupled: bool
) -> None:
    needs = DLKD.needs(arguments)
    assert needs.batch_coupled == coupled
    assert needs.protocols["crd"].ce == (0 if arguments.get("labels") is False else 1)
    module = _module(needs.protocols["crd"], **arguments)
    method = module.method
    weights = {name: getattr(method, f"{name}_weight") for name in terms}
    assert weights == terms
    got = module(building.first_batch(module))
    assert [*got] == [*(["ce"] if needs.protocols["crd"].ce else []), *terms]
    assert {*method.heads} == {*terms}


def test_without_labels_none_is_read() -> None:
    module = _module(LossWeights(ce=0, kd=0, method=1), labels=False)
    batch = building.first_batch(module)
    state = copy.deepcopy(module.state_dict())
    before = module(batch)
    module.load_state_dict(state)
    other = module(replace(batch, labels=torch.zeros_like(batch.labels)))
    assert all(torch.equal(value, other[name]) for name, value in before.items())
    assert not module.student.get_submodule("fc").weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weighting": "code"}, "weighting is text or released"),
        ({"pairs": "some"}, "pairs is all or across"),
        ({"alignment": "l1"}, "alignment is cosine or l2"),
        ({"align_weight": -1}, "weights are at least 0"),
        ({"labels": False, "align_weight": 0, "correlation_weight": 0}, "nothing is left"),
        ({"correlation_temperature": 0}, "correlation_temperature is above 0"),
        ({"hidden_ratio": 0}, "leaves no hidden layer"),
    ],
)
def test_impossible_arguments_are_refused_in_words(arguments: dict[str, Any], said: str) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=said):
        DLKD(building.context(student, teachers), **{**SMALL, **arguments})

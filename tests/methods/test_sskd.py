"""SSKD against float64 loops over the formulas, the selection of rows, its phase, refusals."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import (
    sskd_head_loss,
    sskd_loss,
    sskd_similarity_loss,
    sskd_turned_loss,
)
from compress.methods.blocks.turns import of_all_turns
from compress.methods.contract import first
from compress.methods.sskd import SSKD
from tests.methods import building

IMAGES, TURNED = 5, 15
LABELS = torch.tensor([0, 3, 2, 3, 1])


def _rows(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def _cosines(rows: Tensor) -> list[list[float]]:
    listed = rows.tolist()
    return [
        [
            sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
            for b in listed[:IMAGES]
        ]
        for a in listed[IMAGES:]
    ]


def _selected(
    own: list[list[float]],
    known: list[list[float]],
    truth: list[int],
    temperature: float,
    ratio: float,
) -> float:
    ranked = []
    for number, (row, answer) in enumerate(zip(known, truth, strict=True)):
        better = [z for z in row if z > row[answer]]
        ranked.append((len(better), number % IMAGES, number))  # image by image
    wrong = [row for row in ranked if row[0]]
    right = [row for row in ranked if not row[0]]
    kept = [n for _, _, n in (*right, *sorted(wrong)[: int(len(wrong) * ratio)])]
    total = 0.0
    for n in kept:
        p, q = _softmax(known[n], temperature), _softmax(own[n], temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(kept)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 1.0])
def test_the_turned_loss_equals_the_formula(ratio: float) -> None:
    own, known = 2 * _rows(2, TURNED, 4)
    truth = LABELS.repeat(3)
    got = sskd_turned_loss(own, known, truth, ratio=ratio)
    assert got.dtype == torch.float64
    expected = _selected(own.tolist(), known.tolist(), truth.tolist(), 4.0, ratio)
    assert float(got) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_the_similarity_loss_equals_the_formula(ratio: float) -> None:
    own, known = _rows(IMAGES + TURNED, 3), _rows(IMAGES + TURNED, 6, seed=1)
    got = sskd_similarity_loss(own, known, IMAGES, ratio=ratio)
    sources = [i % IMAGES for i in range(TURNED)]
    expected = _selected(_cosines(own), _cosines(known), sources, 0.5, ratio)
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_the_heads_loss_equals_the_formula() -> None:
    projected = _rows(IMAGES + TURNED, 3)
    rows = _cosines(projected)
    terms = [-math.log(_softmax(row)[i % IMAGES]) for i, row in enumerate(rows)]
    got = sskd_head_loss(projected, IMAGES)
    assert float(got) == pytest.approx(sum(terms) / TURNED, rel=1e-10)


def test_the_whole_is_their_weighted_sum() -> None:
    logits, heads = _rows(2, IMAGES + TURNED, 4), _rows(2, IMAGES + TURNED, 3, seed=1)
    turned = sskd_turned_loss(logits[0, IMAGES:], logits[1, IMAGES:], LABELS.repeat(3))
    similarity = sskd_similarity_loss(heads[0], heads[1], IMAGES)
    got = sskd_loss((logits[0], logits[1]), (heads[0], heads[1]), LABELS)
    torch.testing.assert_close(got, 2.7 * turned + 10 * similarity)


def test_zero_where_the_student_agrees() -> None:
    logits = _rows(TURNED, 4)
    assert float(sskd_turned_loss(logits + 3, logits, LABELS.repeat(3))) == pytest.approx(0)
    rows = _rows(IMAGES + TURNED, 3)
    assert float(sskd_similarity_loss(2 * rows, rows, IMAGES)) == pytest.approx(0, abs=1e-12)


def test_where_nothing_is_kept_the_loss_is_zero() -> None:
    known = torch.zeros(6, 3)
    known[:, 0] = 9
    truth = torch.ones(6, dtype=torch.long)
    assert float(sskd_turned_loss(torch.randn(6, 3), known, truth, ratio=0.0)) == 0


def _module(**arguments: Any) -> tuple[building.Distillation, SSKD]:
    module = building.distillation(partial(SSKD, **arguments))  # type: ignore[arg-type]
    assert isinstance(module.method, SSKD)
    return module, module.method


def test_the_phase_trains_the_teachers_head_alone_by_its_schedule() -> None:
    module, method = _module()
    (phase,) = method.phases()
    assert (phase.epochs, phase.lr, phase.student) == (60, 0.05, "absent")
    assert callable(phase.schedule)
    shares = [phase.schedule(e / 60) for e in (0, 29, 30, 44, 45, 59)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    batch = building.first_batch(module)
    known = module._teacher_views(batch)
    head = method.teacher_head
    assert head is not None
    projected = head(of_all_turns(known[0], "pooled"))
    terms = phase.loss([None] * 4, known, batch)
    torch.testing.assert_close(terms["head"], sskd_head_loss(projected, len(batch.labels)))
    assert [id(p) for p in phase.parameters] == [id(p) for p in head.parameters()]


def test_the_teachers_head_does_not_learn_in_the_main_training() -> None:
    module, method = _module()
    batch = building.first_batch(module)
    module.begin_phase(None, batch)
    assert method.teacher_head is not None and method.student_head is not None
    assert not any(p.requires_grad for p in method.teacher_head.parameters())
    assert all(p.requires_grad for p in method.student_head.parameters())


def test_hard_labels_are_those_of_the_images_as_they_are() -> None:
    module, method = _module()
    batch = building.first_batch(module)
    views = module._student_views(batch)
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((logits, labels))
        return logits.sum()

    method.hard_loss(views, batch, loss)
    ((logits, labels),) = seen
    assert torch.equal(logits, first(views).tensor("logits")) and torch.equal(labels, batch.labels)


def test_terms_of_weight_zero_are_not_computed_and_have_no_head() -> None:
    module, method = _module(similarity_weight=0.0)
    assert [*method.parameters()] == [] and method.phases() == []
    assert "similarity" not in module(building.first_batch(module))
    module, _ = _module(turned_weight=0.0)
    assert "turned" not in module(building.first_batch(module))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"turned_weight": -1.0}, r"at least 0 and not both 0, got \(-1\.0, 10\.0\)"),
        ({"turned_weight": 0.0, "similarity_weight": 0.0}, "not both 0"),
        ({"turned_temperature": 0.0}, "turned_temperature is above 0, got 0"),
        ({"similarity_ratio": 1.5}, r"similarity_ratio is a share from 0 to 1, got 1\.5"),
        ({"head_epochs": -1}, "head_epochs is at least 0, got -1"),
        ({"head_lr": 0.0}, "head_lr is above 0, got 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**arguments)

"""CoCoRD against float64 loops, its averages, queue and views, its ablations, resume."""

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.engine import TrainSettings, train
from compress.methods import (
    LossWeights,
    View,
    cocord_loss,
    cocord_prediction_loss,
)
from compress.methods.blocks.key_queue import info_nce
from compress.methods.cocord import CoCoRD
from compress.taps import Tapped
from tests.methods import building

SMALL = {"queue_size": 11, "hidden_width": 6, "feature_width": 5, "predictor_width": 4}
PLAIN = LossWeights(ce=1, kd=0, method=1)


def _unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _contrast(queries: Tensor, keys: Tensor, queue: Tensor, tau: float) -> float:
    total = 0.0
    for q, k in zip(queries.tolist(), keys.tolist(), strict=True):
        q, k = _unit(q), _unit(k)
        negatives = sum(math.exp(_dot(q, n) / tau) for n in queue.tolist())
        positive = math.exp(_dot(q, k) / tau)
        total -= math.log(positive / (positive + negatives))
    return total / len(queries)


def _prediction(predictions: Tensor, targets: Tensor) -> float:
    pairs = zip(predictions.tolist(), targets.tolist(), strict=True)
    return sum(2 - 2 * _dot(_unit(p), _unit(t)) for p, t in pairs) / len(predictions)


def _rows(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_equals_the_formula() -> None:
    queries, keys, queue = torch.randn(4, 5).double(), _rows(4, 5), _rows(7, 5)
    p, t = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    contrast = _contrast(queries, keys, queue, 0.2)
    prediction = sum(_prediction(*pair) for pair in zip(p, t, strict=True))
    got = info_nce(queries, keys, queue, temperature=0.2)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(contrast, rel=1e-10)
    assert float(cocord_prediction_loss(p[0], t[0])) == pytest.approx(_prediction(p[0], t[0]))
    whole = cocord_loss(queries, keys, queue, [*p], [*t], temperature=0.2, prediction_weight=3)
    assert float(whole) == pytest.approx(contrast + 3 * prediction, rel=1e-10)


def test_limits() -> None:
    rows = _rows(4, 5)
    assert float(cocord_prediction_loss(3 * rows, rows)) == pytest.approx(0, abs=1e-12)
    assert float(cocord_prediction_loss(-rows, rows)) == pytest.approx(4)
    # A queue full of the positive itself: one of eight by chance.
    queue = rows[:1].expand(7, 5)
    assert float(info_nce(rows[:1], rows[:1], queue)) == pytest.approx(math.log(8))


def _module(weights: LossWeights = PLAIN, **arguments: Any) -> building.Distillation:
    build = partial(CoCoRD, **SMALL, **arguments)
    module = building.distillation(build, weights=weights)  # type: ignore[arg-type]
    module.begin_phase(None, building.first_batch(module))
    return module.train()


def _learn(module: building.Distillation, batch: Any) -> None:
    """One step of plain gradient descent and what follows it."""
    torch.stack([*module(batch).values()]).sum().backward()
    with torch.no_grad():
        for p in module.parameters():
            if p.grad is not None:
                p -= 0.05 * p.grad
                p.grad = None
    module.after_step()


def test_terms_are_those_of_the_networks_on_their_views() -> None:
    module = _module().double()
    method, (teacher,) = module.method, module._teachers
    assert isinstance(method, CoCoRD)
    teacher.network.double()
    batch = building.first_batch(module)
    batch = replace(batch, images=tuple(view.double() for view in batch.images))
    reference = copy.deepcopy(module)  # batch norms move
    terms = module(batch)
    own = reference.method
    x_s, x_s2, x_t = batch.images
    student = Tapped(reference.student, own.context.student, ("pooled",))
    slow = student.with_network(own.slow)
    with torch.no_grad():
        q, q2 = (own.projector(student(x).tensor("pooled")) for x in (x_s, x_s2))
        t2, t = (own.slow_projector(slow(x).tensor("pooled")) for x in (x_s2, x_s))
        k = own.teacher_projector(teacher(x_t).tensor("pooled"))
        p, p2 = own.predictor(q), own.predictor(q2)
    contrast = _contrast(q, k, own.queue.keys, 0.1)
    assert float(terms["contrast"].detach()) == pytest.approx(contrast, rel=1e-9)
    prediction = 4 * (_prediction(p, t2) + _prediction(p2, t))
    assert float(terms["prediction"].detach()) == pytest.approx(prediction, rel=1e-9)
    module.after_step()
    expected = nn.functional.normalize(k)
    torch.testing.assert_close(method.queue.keys[:8], expected, rtol=1e-9, atol=1e-12)
    assert int(method.queue.position) == 8
    # Batch norms of the slow student run on batches of their own, as often as the student's.
    for network in (module.student, method.slow, reference.student, own.slow):
        counts = {int(m.num_batches_tracked) for m in network.modules() if hasattr(m, "momentum")}
        assert counts == {2}


def test_averages_move_by_their_momenta_after_each_step() -> None:
    module = _module(student_momentum=0.75, projector_momentum=0.5)
    method = module.method
    before = [p.clone() for p in method.slow.parameters()]
    _learn(module, building.first_batch(module))
    for old, slow, new in zip(
        before, method.slow.parameters(), module.student.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * new)
    assert not any(p.requires_grad for p in method.slow.parameters())


@pytest.mark.parametrize(("momentum", "moves"), [(1.0, False), (0.5, True)])
def test_the_teachers_projector_follows_where_widths_are_equal(
    momentum: float, moves: bool
) -> None:
    student, teachers = building.networks(teacher="resnet14")
    context = building.context(student, teachers)
    method = CoCoRD(context, projector_momentum=momentum, **SMALL)  # type: ignore[arg-type]
    method.bind(Tapped(student, context.student, ("pooled",)))
    known, own = ([*h.parameters()] for h in (method.teacher_projector, method.projector))
    assert all(torch.equal(a, b) for a, b in zip(known, own, strict=True))
    first = own[0].clone()
    with torch.no_grad():
        own[0] += 1
    method.after_step()
    torch.testing.assert_close(known[0], first + (0.5 if moves else 0))


def test_the_teachers_projector_is_frozen_where_widths_differ() -> None:
    module = _module()
    before = [p.clone() for p in module.method.teacher_projector.parameters()]
    assert any("stays as it was drawn" in note for note in module.method.notes())
    _learn(module, building.first_batch(module))
    after = module.method.teacher_projector.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


FOR_STUDENT = View(teacher=False, soft=True)
FOR_BOTH = View(soft=True)
KEYS = View(student=False)


@pytest.mark.parametrize(
    ("arguments", "views", "taps", "terms"),
    [
        ({}, (FOR_STUDENT, View(teacher=False), KEYS), ("pooled",), ["contrast", "prediction"]),
        (
            {"symmetric": False},
            (FOR_STUDENT, View(student=False, teacher=False), KEYS),
            ("pooled",),
            ["contrast", "prediction"],
        ),
        ({"prediction_weight": 0}, (FOR_STUDENT, KEYS), ("pooled",), ["contrast"]),
        ({"contrast_weight": 0}, (FOR_STUDENT, View(teacher=False)), (), ["prediction"]),
        (
            {"cognate": "teacher"},
            (FOR_BOTH, View(), KEYS),
            ("pooled",),
            ["contrast", "prediction"],
        ),
        (
            {"contrastive": "slow"},
            (FOR_STUDENT, View(teacher=False), View(student=False, teacher=False)),
            (),
            ["contrast", "prediction"],
        ),
        (
            {"contrastive": "slow", "prediction_weight": 0},
            (FOR_STUDENT, View(student=False, teacher=False)),
            (),
            ["contrast"],
        ),
    ],
)
def test_each_ablation_reads_what_it_needs_and_learns(
    arguments: dict[str, Any], views: tuple[View, ...], taps: tuple[str, ...], terms: list[str]
) -> None:
    needs = CoCoRD.needs(arguments)
    assert (needs.views, tuple(needs.teacher_taps)) == (views, taps)
    module = _module(**arguments)
    batch = building.first_batch(module)
    assert [*module(batch)] == ["ce", *terms]
    module.method.load_state_dict(module.method.state_dict())  # forgets what was seen
    before = {name: p.clone() for name, p in module.named_parameters()}
    _learn(module, batch)
    moved = {n.split(".")[1] for n, p in module.named_parameters() if not torch.equal(before[n], p)}
    assert "projector" in moved
    assert ("predictor" in moved) == ("prediction" in terms)


def test_kd_is_on_the_view_that_the_student_is_judged_by() -> None:
    module = _module(LossWeights(ce=1, kd=1, method=1))
    (shown,) = module._teacher_views(building.first_batch(module))
    assert [taps is not None for taps in shown] == [True, False, True]
    assert [*module(building.first_batch(module))] == ["ce", "soft", "contrast", "prediction"]
    (shown,) = _module()._teacher_views(building.first_batch(module))
    assert [taps is not None for taps in shown] == [False, False, True]


def test_queue_averages_and_their_buffers_resume_bit_by_bit(tmp_path: Path) -> None:
    def learnt(folder: Path, *epochs: int) -> dict[str, Tensor]:
        for count in epochs:
            module = _module()
            settings = TrainSettings(count, lr=0.05, batch_size=8, schedule=lambda _: 1.0)
            batches = building.batches(module.method)
            train(
                module,
                batches,
                settings,
                directory=folder,
                role="cocord",
                seed=0,
                device=building.CPU,
            )
        return module.state_dict()

    once, resumed = learnt(tmp_path / "once", 2), learnt(tmp_path / "resumed", 1, 2)
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    assert int(once["method.queue.position"]) == 2 * 24 % 11
    assert {"method.slow.fc.weight", "method.slow_projector.1.running_mean"} <= once.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"student_momentum": 1.5}, "student_momentum is from 0 to 1"),
        ({"contrast_weight": 0.0, "prediction_weight": 0.0}, "nothing is left"),
        ({"contrast_weight": -1.0}, "contrast_weight is at least 0"),
        ({"cognate": "student"}, "cognate is teacher or slow"),
        ({"queue_size": 0}, "queue_size is at least 1"),
    ],
)
def test_impossible_arguments_are_refused_in_words(arguments: dict[str, Any], said: str) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=said):
        CoCoRD(building.context(student, teachers), **{**SMALL, **arguments})

"""DeiT against float64 loops over the formulas, its heads, and training through the contract."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.distill import Distillation
from compress.methods import METHODS, deit_loss, teacher_context
from compress.methods.contract import MethodContext
from compress.methods.deit import DeiT
from compress.models import build
from compress.taps import TapSpecs, discover
from compress.tasks import Classification
from tests import transformers
from tests.methods import building
from tests.transformers import OwnViT


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    return len(student.heads) != 2


def _softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def _hard(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for own, known in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= math.log(_softmax(own)[known.index(max(known))])
    return total / len(student)


def _soft(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for own, known in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = (_softmax([z / temperature for z in row]) for row in (own, known))
        total += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def test_equals_the_formulas() -> None:
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64) * 3
    assert float(deit_loss(student, teacher)) == pytest.approx(_hard(student, teacher), rel=1e-12)
    for temperature in (1.0, 3.0):
        got = deit_loss(student, teacher, "soft", temperature)
        assert float(got) == pytest.approx(_soft(student, teacher, temperature), rel=1e-12)


def test_limits() -> None:
    logits = torch.randn(6, 4)
    assert float(deit_loss(logits, logits, "soft")) == pytest.approx(0, abs=1e-6)
    assert float(deit_loss(1e5 * logits, logits)) == pytest.approx(0, abs=1e-6)
    teacher = torch.randn(6, 4)  # its confidence does not count
    assert torch.equal(deit_loss(logits, teacher), deit_loss(logits, 50 * teacher + 3))


@pytest.mark.parametrize("distillation", ["hard", "soft"])
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_equal_and_large_logits_have_finite_gradients(distillation: str, value: float) -> None:
    student = torch.full((3, 5), value, requires_grad=True)
    teacher = torch.randn(3, 5) * value
    loss = deit_loss(student, teacher, distillation)  # type: ignore[arg-type]
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def _module(student: nn.Module, **arguments: object) -> Distillation:
    teacher = build("resnet8", num_classes=building.CLASSES, seed=5)
    method = DeiT(_context(student, teacher), **arguments)  # type: ignore[arg-type]
    weights = DeiT.needs(arguments).protocols["crd"]
    return Distillation(student, [teacher], method, weights, Classification(), kd_temperature=4.0)


def _context(student: nn.Module, teacher: nn.Module) -> MethodContext:
    shape = (3, 32, 32)
    return MethodContext(
        student=discover(student, shape, "student"),
        teachers=(teacher_context(teacher, discover(teacher, shape, "teacher")),),
        num_classes=building.CLASSES,
        train_size=24,
        labels=building.images().labels,
        batch_size=8,
        steps_per_epoch=3,
        epochs=2,
    )


def _batch(module: Distillation) -> Batch:
    batch = building.first_batch(module)
    images = nn.functional.interpolate(batch.images[0], (32, 32))
    return replace(batch, images=(images,))


@pytest.mark.parametrize("flag", [False, True])
def test_heads_of_timm_learn_each_their_own(flag: bool) -> None:
    student = transformers.network("deit")
    module = _module(student).train()
    student.set_distilled_training(flag)  # type: ignore[operator]
    batch = _batch(module)
    terms = module(batch)
    assert [*terms] == ["ce", "deit"]
    tokens = student.forward_features(batch.images[0])  # type: ignore[operator]
    own, other = student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])  # type: ignore[operator]
    known = module._teachers[0](batch.images[0]).tensor("logits")
    cross_entropy = nn.functional.cross_entropy
    torch.testing.assert_close(terms["ce"], cross_entropy(own, batch.labels) / 2)
    torch.testing.assert_close(terms["deit"], cross_entropy(other, known.argmax(1)) / 2)
    for term, head in (("ce", student.head), ("deit", student.head_dist)):
        reached = torch.autograd.grad(
            terms[term],
            [student.head.weight, student.head_dist.weight],  # type: ignore[union-attr]
            retain_graph=True,
            allow_unused=True,
        )
        assert [g is not None for g in reached] == [
            h is head for h in (student.head, student.head_dist)
        ]
    shown = module._tapped(batch.images[0])
    torch.testing.assert_close(module.method.logits(shown), (own + other) / 2)


def test_what_ships_is_the_mean_of_both_heads() -> None:
    student = OwnViT(heads=2)
    module = _module(student).eval()
    images = transformers.images()
    expected = module.method.logits(module._tapped(images))
    torch.testing.assert_close(module.method.deploy(student)(images), expected)


def test_soft_targets_have_weights_of_their_own() -> None:
    hard, soft = (DeiT.needs({"distillation": kind}).protocols for kind in ("hard", "soft"))
    assert {(w.ce, w.kd, w.method) for w in hard.values()} == {(0.5, 0, 0.5)}
    assert {(w.ce, w.kd, w.method) for w in soft.values()} == {(0.9, 0, 0.1)}
    assert DeiT.needs({}).protocols == hard


def test_the_heads_may_be_the_other_way_round() -> None:
    method = _module(OwnViT(heads=2), distillation_head="head").method
    assert (method.class_head, method.distillation_head) == ("others.0", "head")
    with pytest.raises(ValueError, match=r"distillation_head is head or others\.0, got fc"):
        _module(OwnViT(heads=2), distillation_head="fc")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="not the mean of two heads, as that of timm:deit_tiny"):
        _module(OwnViT())
    with pytest.raises(ValueError, match="not the mean of two heads"):
        _module(OwnViT(heads=3))
    with pytest.raises(ValueError, match="temperature is above 0, got 0"):
        _module(OwnViT(heads=2), temperature=0)
    with pytest.raises(ValueError, match="distillation is hard or soft, got none"):
        _module(OwnViT(heads=2), distillation="none")
    assert METHODS["deit"] is DeiT

"""AE-KD with features against float64 loops: the hints' weights and when they join."""

from dataclasses import replace

import pytest
import torch

from compress.methods import aekd_f_loss
from compress.methods.aekd_f import AEKDF, map_gradients
from compress.methods.blocks.min_norm import min_norm_weights
from compress.models import build
from compress.taps import TapSpecs
from tests.methods import building
from tests.methods.throwaway import HintsAtOnce


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: there is no stage 2."""
    return min(len(teacher.stages), len(student.stages)) < 2


def test_equals_the_formula() -> None:
    regressed = [torch.randn(3, c, 2, 2, dtype=torch.float64) for c in (2, 4)]
    known = [torch.randn_like(own) for own in regressed]
    weights, expected = torch.tensor([0.3, 0.7], dtype=torch.float64), 0.0
    for share, own, target in zip(weights.tolist(), regressed, known, strict=True):
        pairs = [*zip(own.flatten().tolist(), target.flatten().tolist(), strict=True)]
        expected += share * sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    assert float(aekd_f_loss(regressed, known, weights)) == pytest.approx(expected, rel=1e-12)


def test_the_gradients_are_those_of_the_hints_up_to_scale() -> None:
    own = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    mixes = torch.randn(2, 5, 3, dtype=torch.float64)
    known = [torch.randn(4, 5, 2, 2, dtype=torch.float64) for _ in mixes]
    regressed = [torch.einsum("dc,nchw->ndhw", mix, own).relu() for mix in mixes]
    got = map_gradients(own, regressed, known)
    for number, (mix, target) in enumerate(zip(mixes, known, strict=True)):
        expected = torch.zeros(3, 2, 2, dtype=torch.float64)
        for n in range(4):
            for d in range(5):
                for h in range(2):
                    for w in range(2):
                        value = float(own[n, :, h, w].detach() @ mix[d])
                        slope = 2 * (max(value, 0) - float(target[n, d, h, w])) * (value > 0)
                        expected[:, h, w] += slope * mix[d] / target.numel()
        torch.testing.assert_close(got[number], own.numel() * expected)


def test_the_hints_are_weighted_by_unit_gradients_and_join_after_an_epoch() -> None:
    module = building.distillation(AEKDF, teachers=2)
    assert isinstance(module.method, AEKDF)
    early = building.first_batch(module)
    assert [*module(early)] == ["ce", "aekd"]
    late = replace(early, epoch=1)
    module.eval()
    terms = module(late)
    assert [*terms] == ["ce", "aekd", "hint"]
    own = module._tapped(late.images[0]).tensors("stages")[1]
    known = [teacher(late.images[0]).tensors("stages")[1] for teacher in module._teachers]
    regressed = [regressor(own) for regressor in module.method.regressors]
    gradients = map_gradients(own, regressed, known)
    lengths = gradients.flatten(1).norm(dim=1)
    inner = min_norm_weights(gradients / lengths[:, None, None, None], 0.6)
    weights = inner / lengths / (inner / lengths).sum()
    expected = 100 * float(aekd_f_loss(regressed, known, weights).detach())
    assert float(terms["hint"].detach()) == pytest.approx(expected, rel=1e-5)


def test_half_precision_keeps_the_weights() -> None:
    module = building.distillation(HintsAtOnce, teachers=2).eval()
    batch = building.first_batch(module)
    exact = module(batch)["hint"].detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(batch)["hint"].detach()
    assert float(half) == pytest.approx(float(exact), rel=0.05)


def test_regressors_meet_teachers_of_different_widths_and_depths() -> None:
    student = build("resnet8", num_classes=building.CLASSES)
    teachers = [build(name, num_classes=building.CLASSES) for name in ("resnet8x4", "vgg8")]
    method = AEKDF(building.context(student, teachers))
    shapes = [t.taps.stages[1].shape for t in method.context.teachers]
    own = torch.zeros(2, *method.context.student.stages[1].shape)
    assert [r(own).shape[1:] for r in method.regressors] == shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hint": 4}, "1 to 3 here, got 4"),
        ({"epochs_without_hint": -1}, "at least 0, got -1"),
        ({"tolerance": 2.0}, "at most 1, got 2"),
    ],
)
def test_impossible_values_are_refused_in_words(arguments: dict[str, float], message: str) -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match=message):
        AEKDF(building.context(student, teachers), **arguments)  # type: ignore[arg-type]

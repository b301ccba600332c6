"""DCD against float64 loops in both forms, what its scale and bias do, what learns and decays."""

import math

import pytest
import torch
from torch import Tensor

from compress.engine import OptimizerStep, TrainSettings
from compress.methods import dcd_consistency_loss, dcd_contrast_loss, dcd_loss
from compress.methods.dcd import DCD, logits_of_pairs
from tests.methods import building


def _shares(numbers: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in numbers]
    return [e / sum(exponentials) for e in exponentials]


def _oracle(student: Tensor, teacher: Tensor, scale: float, form: str) -> tuple[float, float]:
    """Contrast and consistency."""
    own, known = (
        [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features.tolist()]
        for features in (student, teacher)
    )
    logits = [[scale * sum(a * b for a, b in zip(s, t, strict=True)) for t in known] for s in own]
    count = len(logits)
    p = [_shares(row) for row in logits]
    columns = [_shares([row[j] for row in logits]) for j in range(count)]
    contrast = -sum(math.log(p[i][i]) for i in range(count)) / count
    consistency = 0.0
    for i in range(count):
        for j in range(count):
            # columns[j][i] is the share of row i in column j.
            q = columns[i][j] if form == "released" else columns[j][i]
            consistency += q * (math.log(q) - math.log(p[i][j]))
    return contrast, consistency / (count if form == "released" else count**2)


def _logits(student: Tensor, teacher: Tensor, tau: float, bias: float = 0.0) -> Tensor:
    scalars = (torch.tensor(x, dtype=torch.float64) for x in (tau, bias))
    return logits_of_pairs(student, teacher, *scalars)


@pytest.mark.parametrize("form", ["released", "text"])
@pytest.mark.parametrize(("tau", "scale"), [(1.0, math.e), (3.0, 10.0)])
def test_equals_the_formula(form: str, tau: float, scale: float) -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    logits = _logits(student, teacher, tau)
    contrast, consistency = _oracle(student, teacher, scale, form)
    got = dcd_consistency_loss(logits, form)  # type: ignore[arg-type]
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(consistency, rel=1e-10)
    assert float(dcd_contrast_loss(logits)) == pytest.approx(contrast, rel=1e-10)
    scalars = torch.tensor([tau, 0.3], dtype=torch.float64)
    whole = dcd_loss(student, teacher, *scalars, alpha=0.7, form=form)  # type: ignore[arg-type]
    assert float(whole) == pytest.approx(contrast + 0.7 * consistency, rel=1e-10)


def test_the_released_consistency_is_zero_where_logits_are_symmetric() -> None:
    features = torch.randn(5, 4, dtype=torch.float64)
    logits = _logits(features, features, 1.0)
    assert float(dcd_consistency_loss(logits, "released")) == pytest.approx(0, abs=1e-12)
    assert abs(float(dcd_consistency_loss(logits, "text"))) > 1e-6


def test_the_bias_changes_nothing_and_the_clamped_scale_stays() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    for form in ("released", "text"):
        for tau, moves in ((1.0, True), (2.4, False)):
            scalars = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (tau, 0.7)]
            logits = logits_of_pairs(student, teacher, *scalars)
            loss = dcd_contrast_loss(logits) + dcd_consistency_loss(logits, form)  # type: ignore[arg-type]
            plain = _logits(student, teacher, tau)
            unbiased = dcd_contrast_loss(plain) + dcd_consistency_loss(plain, form)  # type: ignore[arg-type]
            torch.testing.assert_close(loss, unbiased)
            of_scale, of_bias = torch.autograd.grad(loss, scalars)
            assert float(of_bias) == pytest.approx(0, abs=1e-14)
            assert (float(of_scale) != 0) == moves


def test_a_batch_of_one_has_the_term_zero() -> None:
    logits = _logits(*torch.randn(2, 1, 4, dtype=torch.float64), 1.0)
    assert float(dcd_contrast_loss(logits)) == 0
    assert float(dcd_consistency_loss(logits, "released")) == 0


def _module(**arguments: object) -> building.Distillation:
    module = building.distillation(lambda context: DCD(context, **arguments))  # type: ignore[arg-type]
    module.begin_phase(None, building.first_batch(module))
    return module


@pytest.mark.parametrize(
    ("arguments", "learns"),
    [
        ({}, False),
        ({"form": "text"}, True),
        ({"learned": True}, True),
        ({"form": "text", "learned": False}, False),
    ],
)
def test_each_form_has_its_parameters_and_the_scale_never_decays(
    arguments: dict[str, object], learns: bool
) -> None:
    module = _module(**arguments)
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {"method.student_embedding.weight", "method.teacher_embedding.weight"} <= learning
    assert ("method.log_scale" in learning, "method.bias" in learning) == (learns, learns)
    step = OptimizerStep(module, TrainSettings(1, lr=0.1, weight_decay=5e-4), building.CPU)
    groups = step.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, *([0.0] if learns else [])]
    assert len(groups[-1]["params"]) == 2 or not learns


def test_alpha_weighs_the_consistency_which_is_left_out_at_zero() -> None:
    terms = {}
    for alpha in (0.0, 0.5, 2.0):
        module = _module(alpha=alpha).eval()
        shown = [
            tapped(building.first_batch(module).images[0])
            for tapped in (module._tapped, module._teachers[0])
        ]
        terms[alpha] = module.method([shown[0]], [[shown[1]]], building.first_batch(module))
    assert [*terms[0.0]] == ["contrast"]
    torch.testing.assert_close(terms[2.0]["consistency"], 4 * terms[0.5]["consistency"])
    assert torch.equal(terms[2.0]["contrast"], terms[0.0]["contrast"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"form": "paper"}, "form is released or text"),
        ({"alpha": -1.0}, "alpha is at least 0"),
        ({"feature_width": 0}, "feature_width is at least 1"),
    ],
)
def test_impossible_arguments_are_refused_in_words(arguments: dict[str, object], said: str) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=said):
        DCD(building.context(student, teachers), **arguments)  # type: ignore[arg-type]

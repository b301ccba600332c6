"""CRD against a float64 loop, its normalisers and banks over steps, its draws and refusals."""

import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from compress.data import Batch
from compress.distill import Distillation
from compress.methods import MethodContext, crd_loss
from compress.methods.crd import CRD, Contrast
from tests.methods import building

ROWS, WIDTHS, FEATURES, TAU = 11, (5, 7), 3, 0.2
ALL = Batch((), (), building.images().labels, torch.arange(24), epoch=0, step=0)


def _embedded(layer: torch.nn.Linear, features: Tensor) -> list[list[float]]:
    found = []
    for f in features.tolist():
        pairs = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        v = [sum(a * x for a, x in zip(w, f, strict=True)) + b for w, b in pairs]
        found.append([x / math.sqrt(sum(y * y for y in v)) for x in v])
    return found


def _oracle(
    contrast: Contrast, features: tuple[Tensor, Tensor], drawn: Tensor
) -> tuple[float, ...]:
    """L, Z_s and Z_t of a first batch."""
    total, normalisers = 0.0, []
    sides = (
        (contrast.student_embedding, features[0], contrast.teacher_bank.tolist()),
        (contrast.teacher_embedding, features[1], contrast.student_bank.tolist()),
    )
    for layer, inputs, bank in sides:
        scores = [
            [math.exp(sum(a * b for a, b in zip(v, bank[i], strict=True)) / TAU) for i in row]
            for v, row in zip(_embedded(layer, inputs), drawn.tolist(), strict=True)
        ]
        flat = [s for row in scores for s in row]
        z = sum(flat) / len(flat) * ROWS
        noise = (len(scores[0]) - 1) / ROWS
        for positive, *negatives in ([s / z for s in row] for row in scores):
            total -= math.log(positive / (positive + noise + 1e-7)) / len(scores)
            total -= sum(math.log(noise / (p + noise + 1e-7)) for p in negatives) / len(scores)
        normalisers.append(z)
    return total, *normalisers


def _case() -> tuple[Contrast, tuple[Tensor, Tensor], Tensor, Tensor]:
    torch.manual_seed(3)
    contrast = Contrast(*WIDTHS, FEATURES, ROWS).double()
    features = tuple(torch.randn(4, w, dtype=torch.float64) for w in WIDTHS)
    images = torch.tensor([3, 0, 10, 6])
    drawn = torch.cat([images[:, None], torch.randint(ROWS, (4, 6))], 1)
    return contrast, features, images, drawn  # type: ignore[return-value]


@cache
def _context() -> MethodContext:
    student, teachers = building.networks()
    return building.context(student, teachers)


def _built(**arguments: float | str) -> CRD:
    return CRD(_context(), **arguments)  # type: ignore[arg-type]


def _first(module: Distillation) -> Batch:
    return building.first_batch(module)


def test_equals_the_formula_and_sets_its_normalisers_after_the_step() -> None:
    contrast, features, images, drawn = _case()
    expected, *normalisers = _oracle(contrast, features, drawn)
    loss = contrast(*features, images, drawn, TAU)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)
    assert contrast.normalisers.tolist() == [0, 0]
    contrast.after_step(0.5)
    assert contrast.normalisers.tolist() == pytest.approx(normalisers, rel=1e-10)


def test_normalisers_stay_and_each_bank_gets_its_own_networks_rows() -> None:
    contrast, features, images, drawn = _case()
    before = (contrast.student_bank.clone(), contrast.teacher_bank.clone())
    contrast(*features, images, drawn, TAU)
    contrast.after_step(0.5)
    normalisers = contrast.normalisers.clone()
    layers = (contrast.student_embedding, contrast.teacher_embedding)
    banks = (contrast.student_bank, contrast.teacher_bank)
    others = [i for i in range(ROWS) if i not in images.tolist()]
    for layer, inputs, old, bank in zip(layers, features, before, banks, strict=True):
        moved = 0.5 * old[images] + 0.5 * torch.tensor(_embedded(layer, inputs)).double()
        moved = moved / moved.norm(dim=1, keepdim=True)
        torch.testing.assert_close(bank[images], moved, rtol=1e-6, atol=1e-6)
        assert torch.equal(bank[others], old[others])
    contrast(*(3 * f + 1 for f in features), images, drawn, TAU)
    contrast.after_step(0.5)
    assert torch.equal(contrast.normalisers, normalisers)
    written = contrast.student_bank.clone()
    contrast.after_step(0.5)  # a pass is written once
    assert torch.equal(contrast.student_bank, written)


def test_equal_scores_have_a_closed_form() -> None:
    # P = 1/M for all: log(1 + K) + K log(1 + 1/K), up to epsilon.
    negatives, rows = 50, 200
    scores = torch.full((3, 1 + negatives), 2.5, dtype=torch.float64)
    expected = math.log1p(negatives) + negatives * math.log1p(1 / negatives)
    got = crd_loss(scores, scores.exp().mean() * rows, rows)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_float32_keeps_what_many_small_negatives_add() -> None:
    scores = torch.randn(2, 16385, dtype=torch.float64) * 4
    z = scores.exp().mean() * 50_000
    narrow = float(crd_loss(scores.float(), z.float(), 50_000))
    assert narrow == pytest.approx(float(crd_loss(scores, z, 50_000)), rel=1e-6)


def test_the_loss_pulls_at_the_positive_and_pushes_off_the_negatives() -> None:
    scores = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    (pull,) = torch.autograd.grad(crd_loss(scores, torch.tensor(40.0), 30), scores)
    assert bool((pull[:, 0] < 0).all())
    assert bool((pull[:, 1:] > 0).all())


def test_trial_passes_and_passes_in_eval_mode_leave_banks_and_normalisers_alone() -> None:
    module = building.distillation(CRD)
    batch = _first(module)
    before = {k: v.clone() for k, v in module.method.state_dict().items()}
    for trial in (partial(module.begin_phase, None), module.measure, module.eval()):
        trial(batch)
        module.after_step()
    assert {"student_bank", "teacher_bank", "normalisers"} <= {k.split(".")[-1] for k in before}
    assert all(torch.equal(v, before[k]) for k, v in module.method.state_dict().items())


def test_positives_are_the_image_itself_or_one_of_its_class() -> None:
    exact, relaxed = (_built(mode=mode).draw_rows(ALL)[:, 0] for mode in ("exact", "relax"))
    assert torch.equal(exact, ALL.index)
    assert torch.equal(ALL.labels[relaxed], ALL.labels)
    assert not torch.equal(relaxed, ALL.index)


def test_draws_are_a_function_of_the_step_and_of_other_classes() -> None:
    method = _built()
    drawn = method.draw_rows(ALL)
    torch.rand(5)
    assert torch.equal(method.draw_rows(ALL), drawn)
    assert not torch.equal(method.draw_rows(replace(ALL, step=1)), drawn)
    assert bool((ALL.labels[drawn[:, 1:]] != ALL.labels[:, None]).all())


@pytest.mark.parametrize("mode", ["exact", "relax"])
@pytest.mark.parametrize("negatives", [3, 16384], ids=["distinct", "with repeats"])
def test_parts_of_a_batch_draw_the_rows_of_the_whole(mode: str, negatives: int) -> None:
    method = _built(mode=mode, negatives=negatives)
    drawn = method.draw_rows(ALL)
    for rows in (slice(0, 5), slice(5, 24)):
        assert torch.equal(method.draw_rows(building.part(ALL, rows)), drawn[rows]), rows


def test_several_teachers_add_up_with_banks_of_their_own() -> None:
    module = building.distillation(CRD, teachers=2).eval()
    batch, method = _first(module), module.method
    assert isinstance(method, CRD)
    taps = [[tapped(batch.images[0])] for tapped in (module._tapped, *module._teachers)]
    whole = method(taps[0], taps[1:], batch)["crd"].detach()
    drawn, own = method.draw_rows(batch), taps[0][0].tensor("pooled")
    parts = [
        contrast(own, teacher[0].tensor("pooled"), batch.index, drawn, method.temperature).detach()
        for contrast, teacher in zip(method.contrasts, taps[1:], strict=True)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-6)
    assert float(parts[0]) != float(parts[1])
    assert "for each of 2 teachers" in method.notes()[0]


def test_the_banks_are_printed_and_repeats_are_said() -> None:
    banks, repeats = _built().notes()
    assert banks == "two memory banks of 24 x 128 float32: 0.02 MB"
    assert "16,384 negatives per image with repeats, from 19 or more" in repeats


def test_rebuilt_without_data_it_holds_no_rows() -> None:
    context = replace(_context(), labels=torch.zeros(0, dtype=torch.long))
    assert CRD(context).contrasts[0].student_bank.shape == (0, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "at least 1, got 0"),
        ({"temperature": 0.01}, "at least 0.02, got 0.01"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"features": 0}, "features is at least 1"),
        ({"mode": "near"}, "exact or relax, got near"),
    ],
)
def test_impossible_values_are_refused_in_words(
    arguments: dict[str, float | str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _built(**arguments)

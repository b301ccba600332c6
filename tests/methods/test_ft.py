"""FT against a float64 loop over the formula, its phase, and what stays frozen after it."""

import math
from itertools import pairwise

import pytest
import torch

from compress.methods import ft_loss, paraphraser_loss
from compress.methods.ft import FT
from compress.models import build
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: a single pixel has nothing to spread over."""
    return any(specs.stages[-1].height == 1 for specs in (teacher, student))


def _normalised(factor: torch.Tensor) -> list[list[float]]:
    samples, channels, height, width = factor.shape
    rows = []
    for n in range(samples):
        row = [
            sum(float(factor[n, c, h, w]) ** 2 for c in range(channels)) / channels
            for h in range(height)
            for w in range(width)
        ]
        norm = math.sqrt(sum(x * x for x in row))
        rows.append([x / norm for x in row])
    return rows


def _oracle(student: torch.Tensor, teacher: torch.Tensor) -> float:
    differences = [
        abs(s - t)
        for own, target in zip(_normalised(student), _normalised(teacher), strict=True)
        for s, t in zip(own, target, strict=True)
    ]
    return sum(differences) / len(differences)


def test_equals_the_formula() -> None:
    student = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    teacher = torch.randn(3, 5, 4, 3, dtype=torch.float64)  # widths may differ
    got = ft_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-12)


@pytest.mark.parametrize(("own", "target"), [(8, 4), (4, 8)])
def test_the_larger_factor_is_average_pooled(own: int, target: int) -> None:
    student = torch.randn(2, 3, own, own, dtype=torch.float64)
    teacher = torch.randn(2, 3, target, target, dtype=torch.float64)
    halves = [
        f.view(2, 3, 4, 2, 4, 2).mean((3, 5)) if f.shape[-1] == 8 else f for f in (student, teacher)
    ]
    assert float(ft_loss(student, teacher)) == pytest.approx(_oracle(*halves), rel=1e-12)


def test_zero_for_factors_that_differ_in_scale_sign_and_order_of_channels() -> None:
    factor = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    assert float(ft_loss(-7 * factor.flip(1), factor)) == pytest.approx(0, abs=1e-15)


def test_a_zero_factor_stays_finite() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = ft_loss(student, torch.randn(2, 3, 4, 4))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_networks_have_the_published_layers() -> None:
    student = build("resnet8", num_classes=5)  # 64 channels
    teacher = build("resnet8x4", num_classes=5)  # 256
    method = FT(building.context(student, [teacher]))

    def convolutions(*widths: int) -> int:
        return sum(9 * i * o + o for i, o in pairwise(widths))

    def counted(part: torch.nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    assert counted(method.paraphraser) == convolutions(256, 256, 128, 128)
    # Transposed: a bias per output channel of the mirrored widths.
    assert counted(method.decoder) == convolutions(128, 128, 256, 256)
    batch_norm = 2 * (64 + 128 + 128)
    assert counted(method.translator) == convolutions(64, 64, 128, 128) + batch_norm
    slopes = [m.negative_slope for m in method.modules() if isinstance(m, torch.nn.LeakyReLU)]
    assert slopes == [0.1] * 9
    maps = torch.randn(2, 256, 4, 4)
    assert method.decoder(method.paraphraser(maps)).shape == maps.shape


def test_the_weight_is_that_of_the_published_code() -> None:
    assert {terms.method for terms in FT.protocols.values()} == {200}


def test_the_phase_trains_the_autoencoder_alone_on_the_teachers_last_stage() -> None:
    module = building.distillation(FT)
    batch = building.first_batch(module)
    (phase,) = module.method.phases()
    assert (phase.name, phase.epochs, phase.lr) == ("paraphraser", 30, 0.01)
    assert phase.student == "absent"
    module.begin_phase(phase, batch)
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in learning} == {"paraphraser", "decoder"}
    assert len(learning) == 2 * 6
    maps = module._teachers[0](batch.images[0]).tensors("stages")
    reconstructed = module.method.decoder(module.method.paraphraser(maps[-1]))  # type: ignore[operator]
    expected = (reconstructed - maps[-1]).square().mean()
    torch.testing.assert_close(module(batch), {"paraphraser": expected})


def test_a_perfect_reconstruction_costs_nothing() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert float(paraphraser_loss(maps, maps)) == 0
    assert float(paraphraser_loss(maps + 3, maps)) == pytest.approx(9)


def test_the_paraphraser_is_frozen_in_the_main_training() -> None:
    module = building.distillation(FT)
    batch = building.first_batch(module)
    module.begin_phase(module.method.phases()[0], batch)
    module.begin_phase(None, batch)
    learning = {n.split(".")[1] for n, p in module.method.named_parameters("m") if p.requires_grad}
    assert learning == {"translator"}


def test_the_last_stages_are_compared_whatever_their_number() -> None:
    student, teacher = build("resnet8", num_classes=5), build("vgg8", num_classes=5)
    method = FT(building.context(student, [teacher]), paraphraser_lr=None)
    assert method.translator[-3].out_channels == 512 // 2  # the teacher's fourth stage
    assert method.phases()[0].lr is None
    assert method.notes() == []


def test_a_last_map_of_one_pixel_is_refused_in_words() -> None:
    student = build("resnet8", num_classes=5)
    teacher = build("torchvision:resnet18", num_classes=5)
    with pytest.raises(ValueError, match="single pixel; choose larger images or another pair"):
        FT(building.context(student, [teacher]))


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.003, math.inf, math.nan])
def test_a_rate_without_a_channel_is_refused_in_words(rate: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="256 channels is 1 or more, got"):
        FT(building.context(student, teachers), paraphrase_rate=rate)


def test_an_untrained_paraphraser_is_refused_in_words() -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="paraphraser_epochs is 1 or more"):
        FT(building.context(student, teachers), paraphraser_epochs=0)


@pytest.mark.parametrize("lr", [0.0, -0.1, math.inf, math.nan])
def test_an_impossible_learning_rate_is_refused_in_words(lr: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="paraphraser_lr is above 0"):
        FT(building.context(student, teachers), paraphraser_lr=lr)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher, got 2"):
        FT(building.context(student, teachers))

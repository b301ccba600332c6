"""SKD: the formula, pixel by pixel and node by node, and its discriminator."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS
from compress.methods.blocks.adversary import Discriminator, discriminator_loss
from compress.methods.skd import skd_pair_loss, skd_pixel_loss
from compress.taps import TapSpecs
from tests.methods import building

WIDE = torch.float64


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    return not student.is_dense


def maps(channels: int, seed: int, side: tuple[int, int] = (5, 7)) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *side, generator=draw, dtype=WIDE)


def test_pixels_learn_the_cross_entropy_of_the_teacher() -> None:
    student, teacher = maps(3, 0), maps(3, 1)
    total = 0.0
    for n in range(2):
        for y in range(5):
            for x in range(7):
                t, s = teacher[n, :, y, x].tolist(), student[n, :, y, x].tolist()
                weights = [math.exp(v) / sum(map(math.exp, t)) for v in t]
                logs = [v - math.log(sum(map(math.exp, s))) for v in s]
                total -= sum(w * log for w, log in zip(weights, logs, strict=True))
    assert float(skd_pixel_loss(student, teacher)) == pytest.approx(total / 70, rel=1e-12)


def nodes(values: Tensor) -> list[list[float]]:
    """Maxima of cells of 2 x 3, the last of which may be smaller."""
    made = []
    for top in range(0, 5, 2):
        for left in range(0, 7, 3):
            cell = values[:, top : top + 2, left : left + 3]
            made.append([float(channel.max()) for channel in cell])
    return made


def test_pairs_are_the_cosines_of_pooled_nodes() -> None:
    student, teacher = maps(4, 0), maps(6, 1)
    total = 0.0
    for n in range(2):
        grids = [nodes(m[n]) for m in (student, teacher)]
        count = len(grids[0])
        for i in range(count):
            for j in range(count):
                cosines = []
                for grid in grids:
                    a, b = grid[i], grid[j]
                    dot = sum(x * y for x, y in zip(a, b, strict=True))
                    cosines.append(dot / math.hypot(*a) / math.hypot(*b))
                total += (cosines[0] - cosines[1]) ** 2 / count**2
    assert float(skd_pair_loss(student, teacher)) == pytest.approx(total / 2, rel=1e-6)


def test_equal_maps_have_no_skd_pair_loss_whatever_their_scale() -> None:
    features = maps(4, 0)
    assert float(skd_pair_loss(3 * features, features)) == pytest.approx(0, abs=1e-15)


def test_the_student_is_moved_and_the_discriminator_is_not_by_its_score() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3, 8)
    student = torch.randn(2, 3, 8, 8, requires_grad=True)
    discriminator.score_fixed(student).mean().backward()
    assert student.grad is not None
    assert all(p.grad is None for p in discriminator.parameters())
    discriminator_loss(discriminator, student, torch.randn(2, 3, 8, 8), torch.rand(2)).backward()
    assert all(p.grad is not None for p in discriminator.parameters())


def test_a_discriminator_learns_to_tell_teacher_from_student() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3, 16)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    teacher, student = torch.randn(8, 3, 16, 16) + 1, torch.randn(8, 3, 16, 16) - 1
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminator, student, teacher, torch.rand(8))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    both = discriminator(torch.cat([teacher, student]))
    assert both[:8].mean() > both[8:].mean()


def test_the_penalty_is_that_of_the_gradients_length() -> None:
    """Of a discriminator whose score is a weighted sum, the length of the weights."""
    weight = torch.randn(2, 4, 4, dtype=WIDE)

    class Sum(Discriminator):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, logits: Tensor) -> Tensor:
            return (logits * weight).sum((1, 2, 3))

    zero = torch.zeros(3, 2, 4, 4, dtype=WIDE)
    loss = discriminator_loss(Sum(), zero, zero, torch.rand(3))
    assert float(loss) == pytest.approx(10 * (float(weight.norm()) - 1) ** 2, rel=1e-12)


@pytest.mark.parametrize("side", [8, 15, 16, 33, 65, 90])
def test_maps_of_any_size_from_eight_pixels_have_scores(side: int) -> None:
    scores = Discriminator(2, side)(torch.randn(2, 2, side, side + 3))
    assert scores.shape[:2] == (2, 1)


def test_small_maps_are_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"8 or more pixels, got 7.*adversary_weight: 0"):
        Discriminator(2, 7)


def test_without_weight_there_is_no_discriminator_and_no_coupling() -> None:
    module = building.distillation(partial(METHODS["skd"], adversary_weight=0.0))  # type: ignore[arg-type]
    assert not module.method.batch_coupled
    assert [*module(building.first_batch(module))] == ["ce", "pixel", "pair"]
    assert not module.method.state_dict()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pixel_weight": -1.0}, "weights are at least 0"),
        ({"pool": 0.0}, "pool is a share"),
        ({"adversary_lr": 0.0}, "adversary_lr is above 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        building.distillation(partial(METHODS["skd"], **arguments))  # type: ignore[arg-type]

"""NST against a float64 loop over the formula, its invariances, unequal stages, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from compress.methods import nst_loss
from compress.methods.nst import NST
from compress.taps import Tapped
from tests.methods import building


def _unit_channels(image: Tensor) -> list[list[float]]:
    rows = [[float(v) for v in channel.flatten()] for channel in image]
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]


def _mean_kernel(first: list[list[float]], second: list[list[float]]) -> float:
    values = [sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a in first for b in second]
    return sum(values) / len(values)


def _oracle(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for one, other in zip(student, teacher, strict=True):
        s, t = _unit_channels(one), _unit_channels(other)
        total += _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)
    return total / len(student)


@pytest.mark.parametrize("channels", [(2, 5), (9, 14), (2, 14), (14, 40)])
def test_equals_the_formula_with_unequal_channels(channels: tuple[int, int]) -> None:
    # Few channels and many of the six pixels take different ways to the same sum.
    student = torch.randn(3, channels[0], 3, 2, dtype=torch.float64)
    teacher = torch.randn(3, channels[1], 3, 2, dtype=torch.float64)
    got = nst_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-10)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_average_pooled(larger: str) -> None:
    small = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    large = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 4, 2, 2, 2, 2).mean((3, 5))
    got = nst_loss(large, small) if larger == "student" else nst_loss(small, large)
    assert float(got) == pytest.approx(_oracle(small, pooled), rel=1e-10)


def test_zero_for_equal_sets_of_channels_whatever_their_order_number_and_scale() -> None:
    maps = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    scale = torch.rand(3, 4, 1, 1, dtype=torch.float64) + 0.5
    for other in (maps, maps.flip(1), maps * scale, -maps, torch.cat([maps, maps], 1)):
        assert float(nst_loss(other, maps)) == pytest.approx(0, abs=1e-14)
    assert float(nst_loss(maps.flip(3), maps)) > 1e-3


def test_never_negative() -> None:
    for _ in range(20):
        student, teacher = torch.randn(2, 2, 6, 3, 3, dtype=torch.float64)
        assert float(nst_loss(student, teacher)) > 0


def test_the_teachers_own_mean_moves_nothing() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(nst_loss(student, teacher), teacher)
    unit = [(m / m.flatten(2).norm(dim=2)[..., None, None]).flatten(2) for m in (student, teacher)]
    across = -2 * torch.einsum("nip,njp->nij", *unit).square().mean()
    (expected,) = torch.autograd.grad(across, teacher)
    torch.testing.assert_close(got, expected)


def test_dead_channels_stay_finite() -> None:
    student = torch.randn(2, 3, 4, 4)
    student[:, 1] = 0
    student.requires_grad_(True)
    value = nst_loss(student, torch.zeros(2, 5, 4, 4))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("names", [("resnet8", "resnet8x4"), ("vgg8", "resnet8x4")])
@torch.no_grad()
def test_sums_the_pairs_of_stages_from_the_fine_end(names: tuple[str, str]) -> None:
    student, teachers = building.networks(student=names[0], teacher=names[1])
    context = building.context(student, teachers)
    method = NST(context)
    batch = next(building.batches(method, batch_size=2).epoch(0))
    own = Tapped(student, context.student, method.student_taps)(batch.images[0])
    known = Tapped(teachers[0], context.teachers[0].taps, method.teacher_taps)(batch.images[0])
    expected = sum(
        float(nst_loss(own.tensors("stages")[i], known.tensors("stages")[i])) for i in range(3)
    )
    assert float(method([own], [[known]], batch)["nst"]) == pytest.approx(expected, rel=1e-5)
    assert bool(method.notes()) == (names[0] == "vgg8")  # which has a fourth stage


def test_refusals() -> None:
    student, teachers = building.networks(teachers=2)
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="one teacher, got 2"):
        NST(context)
    one = dataclasses.replace(context, teachers=context.teachers[:1])
    bare = dataclasses.replace(one.student, stages=())
    with pytest.raises(ValueError, match="the student has none"):
        NST(dataclasses.replace(one, student=bare))

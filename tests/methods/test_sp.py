"""SP against a float64 loop over the formula, its invariances, unequal maps, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from compress.methods import sp_loss
from compress.methods.sp import SP
from compress.taps import Tapped
from tests.methods import building


def _similarities(maps: Tensor) -> list[list[float]]:
    rows = [[float(v) for v in image.flatten()] for image in maps]
    products = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in products]


def _oracle(student: Tensor, teacher: Tensor) -> float:
    own, known = _similarities(student), _similarities(teacher)
    count = len(own)
    total = sum((known[i][j] - own[i][j]) ** 2 for i in range(count) for j in range(count))
    return total / count**2


def test_equals_the_formula_with_unequal_channels_and_sizes() -> None:
    student = torch.randn(5, 2, 4, 3, dtype=torch.float64)
    teacher = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    got = sp_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-10)


def test_zero_for_equal_scaled_and_rotated_features() -> None:
    maps = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    rotated = (maps.flatten(1) @ rotation).reshape(maps.shape)
    for other in (maps, 5 * maps, rotated):
        assert float(sp_loss(other, maps)) == pytest.approx(0, abs=1e-15)
    assert float(sp_loss(maps.flip(0), maps)) > 1e-3


def test_the_order_of_the_images_does_not_matter() -> None:
    student, teacher = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    order = torch.randperm(6)
    torch.testing.assert_close(sp_loss(student[order], teacher[order]), sp_loss(student, teacher))


def test_a_batch_of_one_has_nothing_to_compare() -> None:
    student = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    value = sp_loss(student, torch.randn(1, 4, 2, 2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) == pytest.approx(0, abs=1e-15)
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("names", [("resnet8", "resnet8x4"), ("shufflenetv2", "resnet8x4")])
@torch.no_grad()
def test_reads_the_deepest_stage_of_both(names: tuple[str, str]) -> None:
    student, teachers = building.networks(student=names[0], teacher=names[1])
    context = building.context(student, teachers)
    method = SP(context)
    assert method.batch_coupled
    batch = next(building.batches(method, batch_size=3).epoch(0))
    own = Tapped(student, context.student, ("stages",))(batch.images[0])
    known = Tapped(teachers[0], context.teachers[0].taps, ("stages",))(batch.images[0])
    maps = own.tensors("stages")[2].double(), known.tensors("stages")[2].double()
    got = float(method([own], [[known]], batch)["sp"])
    assert got == pytest.approx(_oracle(*maps), rel=1e-3, abs=1e-8)


def test_refusals() -> None:
    student, teachers = building.networks(teachers=2)
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="one teacher, got 2"):
        SP(context)
    one = dataclasses.replace(context, teachers=context.teachers[:1])
    bare = dataclasses.replace(one.student, stages=())
    with pytest.raises(ValueError, match="the student has none"):
        SP(dataclasses.replace(one, student=bare))

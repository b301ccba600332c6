"""AT against a float64 loop over the formula, its invariances, unequal stages, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from compress.methods import at_loss
from compress.methods.at import AT
from compress.taps import Tapped
from tests.methods import building


def _attention(image: Tensor, power: float) -> list[float]:
    channels, height, width = image.shape
    values = [
        sum(abs(float(image[c, y, x])) ** power for c in range(channels)) / channels
        for y in range(height)
        for x in range(width)
    ]
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def _oracle(student: Tensor, teacher: Tensor, power: float = 2.0) -> float:
    squares = [
        (a - b) ** 2
        for s, t in zip(student, teacher, strict=True)
        for a, b in zip(_attention(s, power), _attention(t, power), strict=True)
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_equals_the_formula_with_unequal_channels(power: float) -> None:
    student = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    teacher = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    got = at_loss(student, teacher, power)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, power), rel=1e-10)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_average_pooled_before_attention(larger: str) -> None:
    small = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    large = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 4, 2, 2, 2, 2).mean((3, 5))
    got = at_loss(large, small) if larger == "student" else at_loss(small, large)
    assert float(got) == pytest.approx(_oracle(small, pooled), rel=1e-10)


def test_zero_for_equal_scaled_negated_and_permuted_maps() -> None:
    maps = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    for other in (maps, 7 * maps, -maps, maps.flip(1), torch.cat([maps, maps], 1)):
        assert float(at_loss(other, maps)) == pytest.approx(0, abs=1e-15)
    assert float(at_loss(maps.flip(3), maps)) > 1e-3


def test_dead_maps_stay_finite() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = at_loss(student, torch.randn(2, 3, 4, 4))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("names", [("resnet8", "resnet8x4"), ("vgg8", "resnet8x4")])
@torch.no_grad()
def test_sums_the_pairs_of_stages_from_the_fine_end(names: tuple[str, str]) -> None:
    student, teachers = building.networks(student=names[0], teacher=names[1])
    context = building.context(student, teachers)
    method = AT(context)
    batch = next(building.batches(method, batch_size=2).epoch(0))
    own = Tapped(student, context.student, method.student_taps)(batch.images[0])
    known = Tapped(teachers[0], context.teachers[0].taps, method.teacher_taps)(batch.images[0])
    expected = sum(
        float(at_loss(own.tensors("stages")[i], known.tensors("stages")[i])) for i in range(3)
    )
    assert float(method([own], [[known]], batch)["at"]) == pytest.approx(expected, rel=1e-6)
    assert bool(method.notes()) == (names[0] == "vgg8")  # which has a fourth stage


def test_refusals() -> None:
    student, teachers = building.networks(teachers=2)
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="one teacher, got 2"):
        AT(context)
    one = dataclasses.replace(context, teachers=context.teachers[:1])
    with pytest.raises(ValueError, match=r"power is 1 or more, got 0\.5"):
        AT(one, power=0.5)
    bare = dataclasses.replace(one.student, stages=())
    with pytest.raises(ValueError, match="the student has none"):
        AT(dataclasses.replace(one, student=bare))

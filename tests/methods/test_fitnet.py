"""FitNet against a float64 loop, its regressor's sizes, the hint it reads, refusals."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from compress.methods import MethodContext, fitnet_loss
from compress.methods.fitnet import FitNet
from compress.taps import Taps
from tests.methods import building


def _oracle(first: Tensor, second: Tensor) -> float:
    pairs = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    total = sum(((a - b) ** 2 for a, b in pairs), 0.0)
    return total / len(pairs)


def _context(student_sizes: list[int], teacher_sizes: list[int]) -> MethodContext:
    """Stages of these heights, one after the other, with 2 and 3 channels."""
    student, teachers = building.networks()
    context = building.context(student, teachers)

    def stages(sizes: list[int], channels: int) -> dict[str, object]:
        spec = context.student.stages[0]
        return {
            "stages": tuple(
                dataclasses.replace(spec, channels=channels, height=s, width=s) for s in sizes
            )
        }

    known = context.teachers[0]
    taps = dataclasses.replace(known.taps, **stages(teacher_sizes, 3))  # type: ignore[arg-type]
    return dataclasses.replace(
        context,
        student=dataclasses.replace(context.student, **stages(student_sizes, 2)),  # type: ignore[arg-type]
        teachers=(dataclasses.replace(known, taps=taps),),
    )


def _taps(sizes: list[int], channels: int) -> Taps:
    maps = [torch.randn(2, channels, s, s, dtype=torch.float64) for s in sizes]
    return Taps(logits=torch.randn(2, building.CLASSES), stages=maps)


def test_equals_the_formula() -> None:
    regressed, target = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    got = fitnet_loss(regressed, target)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(regressed, target), rel=1e-10)
    assert float(fitnet_loss(target, target)) == 0


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_average_pooled(larger: str) -> None:
    small = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    large = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    got = fitnet_loss(large, small) if larger == "student" else fitnet_loss(small, large)
    assert float(got) == pytest.approx(_oracle(small, pooled), rel=1e-10)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "kind", "kernel", "compared"),
    [
        (8, 8, nn.Conv2d, 1, 8),
        (8, 4, nn.Conv2d, 3, 4),
        (4, 8, nn.ConvTranspose2d, 4, 8),
        (8, 2, nn.Conv2d, 3, 2),
        (2, 8, nn.Conv2d, 3, 2),
        (7, 4, nn.Conv2d, 3, 4),
    ],
)
def test_the_regressor_meets_width_and_size(
    student_size: int, teacher_size: int, kind: type[nn.Module], kernel: int, compared: int
) -> None:
    sizes = [16, student_size], [16, teacher_size]
    method = FitNet(_context(*sizes)).double()
    convolution = method.regressor[0]
    assert isinstance(convolution, kind)
    assert convolution.kernel_size == (kernel, kernel)
    own, known = _taps(sizes[0], 2), _taps(sizes[1], 3)
    regressed, target = method.regressor(own.tensors("stages")[1]), known.tensors("stages")[1]
    assert min(regressed.shape[-1], target.shape[-1]) == compared
    expected = fitnet_loss(regressed, target)
    batch = next(building.batches(method, batch_size=2).epoch(0))
    torch.testing.assert_close(method([own], [[known]], batch)["fitnet"], expected)


@pytest.mark.parametrize("hint", [1, 2, 3])
def test_reads_the_hint_stage_alone(hint: int) -> None:
    sizes = [8, 4, 2]
    method = FitNet(_context(sizes, sizes), hint=hint).double()
    own, known = _taps(sizes, 2), _taps(sizes, 3)
    maps = [m.requires_grad_(True) for m in own.tensors("stages")]
    batch = next(building.batches(method, batch_size=2).epoch(0))
    method([own], [[known]], batch)["fitnet"].backward()
    assert [m.grad is not None for m in maps] == [i == hint - 1 for i in range(3)]
    assert all(p.grad is not None for p in method.regressor.parameters())


def test_the_second_stage_is_the_default_and_unequal_networks_are_met() -> None:
    student, teachers = building.networks(student="vgg8")
    context = building.context(student, teachers)
    method = FitNet(context)
    convolution = method.regressor[0]
    assert isinstance(convolution, nn.ConvTranspose2d)  # 4 against 8 pixels
    assert (convolution.in_channels, convolution.out_channels) == (
        context.student.stages[1].channels,
        context.teachers[0].taps.stages[1].channels,
    )


@pytest.mark.parametrize("hint", [0, -1, 4])
def test_a_stage_that_a_network_lacks_is_refused(hint: int) -> None:
    student, teachers = building.networks(student="vgg8")  # four stages against three
    with pytest.raises(ValueError, match=f"1 to 3 here, got {hint}"):
        FitNet(building.context(student, teachers), hint=hint)


def test_several_teachers_and_no_stages_are_refused() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="one teacher, got 2"):
        FitNet(building.context(student, teachers))
    with pytest.raises(ValueError, match="the student has none"):
        FitNet(_context([], [8]))

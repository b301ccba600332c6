"""What meets maps of unequal sizes, those that are not square among them, and their distances."""

import math

import pytest
import torch
from torch import Tensor, nn

from compress.methods.blocks.feature_maps import (
    MapRegressor,
    hierarchical_context_loss,
    pool_to_smaller,
)
from compress.taps import MapSpec


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "compared"),
    [
        ((4, 8), (2, 4), nn.Conv2d, (2, 4)),
        ((2, 4), (4, 8), nn.ConvTranspose2d, (4, 8)),
        ((4, 8), (4, 8), nn.Conv2d, (4, 8)),
        # One side meets, the other does not: the larger is pooled.
        ((4, 8), (2, 8), nn.Conv2d, (2, 8)),
        ((4, 4), (4, 8), nn.Conv2d, (4, 4)),
        ((4, 8), (8, 8), nn.Conv2d, (4, 8)),
    ],
)
def test_a_regressor_keeps_what_both_sides_of_a_map_have(
    student: tuple[int, int],
    teacher: tuple[int, int],
    kind: type[nn.Module],
    compared: tuple[int, int],
) -> None:
    own, known = MapSpec("own", 2, *student, 1), MapSpec("known", 3, *teacher, 1)
    regressor = MapRegressor(own, known)
    assert isinstance(regressor[0], kind)
    regressed = regressor(torch.randn(2, 2, *student))
    pooled, target = pool_to_smaller(regressed, torch.randn(2, 3, *teacher))
    assert pooled.shape == target.shape == (2, 3, *compared)


def _pooled(one: Tensor, side: int) -> list[float]:
    """Means of a map (H, W) over `side` x `side` windows, which overlap where sizes are uneven."""
    height, width = one.shape
    means = []
    for i in range(side):
        for j in range(side):
            rows = range(i * height // side, math.ceil((i + 1) * height / side))
            columns = range(j * width // side, math.ceil((j + 1) * width / side))
            values = [float(one[y, x]) for y in rows for x in columns]
            means.append(sum(values) / len(values))
    return means


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((8, 8), (4, 2, 1)),
        ((7, 5), (4, 2, 1)),
        ((4, 9), (2, 1)),  # as many as the smaller side are left out
        ((3, 3), (2, 1)),
        ((2, 2), (1,)),
        ((5, 1), ()),
        ((1, 1), ()),
    ],
)
def test_hierarchical_contexts_equal_the_formula(
    size: tuple[int, int], sides: tuple[int, ...]
) -> None:
    student, teacher = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    pairs = [(s, t) for n in range(2) for s, t in zip(student[n], teacher[n], strict=True)]

    def squared(side: int) -> float:
        values = [
            (a - b) ** 2
            for s, t in pairs
            for a, b in (
                zip(_pooled(s, side), _pooled(t, side), strict=True)
                if side
                else zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)
            )
        ]
        return sum(values) / len(values)

    weights = [1 / 2**k for k in range(len(sides) + 1)]
    losses = [squared(side) for side in (0, *sides)]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    got = hierarchical_context_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (6, 11), (1, 1)])
def test_hierarchical_contexts_of_a_constant_difference(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    assert float(hierarchical_context_loss(maps, maps)) == 0
    assert float(hierarchical_context_loss(maps + 0.5, maps)) == pytest.approx(0.25)

"""What meets maps of unequal sizes, those that are not square among them."""

import pytest
import torch
from torch import nn

from compress.methods.blocks.feature_maps import MapRegressor, pool_to_smaller
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

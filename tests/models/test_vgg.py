"""VGG for small images."""

import pytest

from tests.models.contract import (
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg8", 3_965_028),
        ("vgg11", 9_277_284),
        ("vgg13", 9_462_180),
        ("vgg16", 14_774_436),
        ("vgg19", 20_086_692),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


@pytest.mark.parametrize("name", ["vgg8", "vgg13"])
def test_taps(name: str) -> None:
    # Before the pooling that follows each group; the last two share their resolution.
    stages = [("relu1", 128, 16), ("relu2", 256, 8), ("relu3", 512, 4), ("relu4", 512, 4)]
    check_taps(name, last=("relu4", 512, 4), stages=stages)


def test_groups_give_the_maps_before_their_activation() -> None:
    check_pre_activations("vgg8", {f"relu{i}": f"relu{i}" for i in range(5)})


def test_other_sizes() -> None:
    check_sizes("vgg8", (64, 48), (16, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("vgg11")

"""MobileNetV2 for small images."""

import pytest
import torch

from compress.models.mobilenet_v2 import InvertedResidual
from tests.models.contract import (
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
)


@pytest.mark.parametrize(
    ("name", "count"), [("mobilenetv2", 812_836), ("mobilenetv2x2", 2_353_060)]
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


@pytest.mark.parametrize(
    ("name", "channels"), [("mobilenetv2", (12, 16, 48, 160)), ("mobilenetv2x2", (24, 32, 96, 320))]
)
def test_taps(name: str, channels: tuple[int, int, int, int]) -> None:
    # The papers' last stage is the map before the last convolution, what is pooled the one after.
    paths = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    stages = list(zip(paths, channels, (16, 8, 4, 2), strict=True))
    check_taps(name, last=("conv2", 1280, 2), stages=stages)


def test_activations_are_modules() -> None:
    check_pre_activations("mobilenetv2", {"conv1": "conv1.2", "conv2": "conv2.2"})


def test_a_block_adds_its_input_where_the_shapes_are_equal() -> None:
    x = torch.randn(2, 8, 6, 6)
    for block, kept in (
        (InvertedResidual(8, 8, 1, 6), x),
        (InvertedResidual(8, 8, 2, 6), torch.zeros(2, 8, 3, 3)),
        (InvertedResidual(8, 4, 1, 6), torch.zeros(2, 4, 6, 6)),
    ):
        torch.nn.init.zeros_(block.get_parameter("conv.6.weight"))
        assert torch.equal(block.eval()(x), kept)


def test_other_sizes() -> None:
    check_sizes("mobilenetv2", (64, 48), (16, 32))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("mobilenetv2")

"""ShuffleNetV2 for small images."""

import pytest
import torch

from compress.models.shufflenet_v2 import ShuffleNetV2, SplitBlock
from tests.models.contract import (
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
)


@pytest.mark.parametrize(
    ("name", "count"), [("shufflenetv2", 1_355_528), ("shufflenetv2x1.5", 2_580_548)]
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


@pytest.mark.parametrize(("name", "width"), [("shufflenetv2", 116), ("shufflenetv2x1.5", 176)])
def test_taps(name: str, width: int) -> None:
    # The papers' last stage is the map before the last convolution, what is pooled the one after.
    stages = [("layer1", width, 16), ("layer2", 2 * width, 8), ("layer3", 4 * width, 4)]
    check_taps(name, last=("relu2", 1024, 4), stages=stages)


def test_activations_are_modules() -> None:
    check_pre_activations("shufflenetv2", {"relu1": "relu1", "relu2": "relu2"})


def test_a_block_passes_the_first_half_through_to_the_even_channels() -> None:
    x = torch.randn(2, 8, 6, 6)
    block = SplitBlock(8).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    out = block(x)
    assert torch.equal(out[:, ::2], x[:, :4])
    assert not out[:, 1::2].any()


def test_other_sizes() -> None:
    check_sizes("shufflenetv2", (64, 48), (16, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("shufflenetv2")


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"even.*got \(116, 232, 465\)"):
        ShuffleNetV2(widths=(116, 232, 465), num_classes=10)

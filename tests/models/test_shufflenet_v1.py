"""ShuffleNet for small images."""

import torch

from compress.models.shufflenet_v1 import ChannelShuffle, ShuffleBlock
from tests.models.contract import (
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
)


def test_published_parameter_count() -> None:
    assert parameters("shufflenetv1") == 949_258


def test_taps() -> None:
    stages = [("layer1", 240, 16), ("layer2", 480, 8), ("layer3", 960, 4)]
    check_taps("shufflenetv1", last=("layer3", 960, 4), stages=stages)


def test_pre_activations_are_what_the_last_relu_of_a_stage_reads() -> None:
    places = {"layer1": "layer1.3.relu3", "layer2": "layer2.7.relu3", "layer3": "layer3.3.relu3"}
    check_pre_activations("shufflenetv1", places)


def test_shuffle_takes_one_channel_of_each_group_in_turn() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 5)
    assert ChannelShuffle(2)(x)[0, :, 0, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert ChannelShuffle(3)(x)[1, :, 2, 4].tolist() == [0, 2, 4, 1, 3, 5]
    # Shuffling with the other factor undoes it.
    assert torch.equal(ChannelShuffle(3)(ChannelShuffle(2)(x)), x)


def test_a_block_that_halves_puts_the_pooled_input_beside_its_branch() -> None:
    x = torch.rand(2, 24, 8, 8)
    block = ShuffleBlock(24, 60, 2).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    out = block(x)
    assert not out[:, :36].any()
    torch.testing.assert_close(out[:, 36:], torch.nn.functional.avg_pool2d(x, 3, 2, 1))


def test_other_sizes() -> None:
    check_sizes("shufflenetv1", (64, 48), (16, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("shufflenetv1")

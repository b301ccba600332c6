"""Pre-activation wide residual networks of the CRD paper."""

import pytest
import torch

from compress.models import build
from compress.models.wide_resnet import PreactBlock, WideResNet
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
        ("wrn_16_1", 180_916),
        ("wrn_16_2", 703_284),
        ("wrn_16_4", 2_772_020),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("wrn_40_4", 8_972_340),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


@pytest.mark.parametrize(("name", "width"), [("wrn_16_2", 2), ("wrn_40_1", 1), ("wrn_40_4", 4)])
def test_taps(name: str, width: int) -> None:
    stages = [("block1", 16 * width, 32), ("block2", 32 * width, 16), ("block3", 64 * width, 8)]
    check_taps(name, last=("relu", 64 * width, 8), stages=stages)


def test_what_the_pooling_reads_is_active_what_the_stages_give_is_not() -> None:
    check_pre_activations("wrn_16_2", {"relu": "relu"})
    network = build("wrn_16_1", num_classes=3)
    raw = network.get_submodule("block1")(torch.randn(1, 16, 8, 8))
    assert raw.min() < 0


def test_a_shortcut_is_the_raw_input_or_reads_the_activated_one() -> None:
    x = torch.randn(2, 8, 6, 6)
    same, other = PreactBlock(8, 8, 1).eval(), PreactBlock(8, 16, 2).eval()
    for block in (same, other):
        torch.nn.init.zeros_(block.conv2.weight)
    assert torch.equal(same(x), x)
    assert other.convShortcut is not None
    active = (x / (1 + other.bn1.eps) ** 0.5).relu()
    torch.testing.assert_close(other(x), other.convShortcut(active))


def test_other_sizes() -> None:
    check_sizes("wrn_16_2", (64, 48), (20, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("wrn_16_2")


def test_an_impossible_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6n\+4.*got 38"):
        WideResNet(depth=38, width=2, num_classes=10)

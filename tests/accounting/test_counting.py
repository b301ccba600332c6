"""Parameters, bytes and MACs against arithmetic done by hand next to each case."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.accounting import count_macs, count_parameters, size_bytes
from compress.models import build


class Attention(nn.Module):
    """Linear layers around two products of activations, in three spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.project(images.flatten(2).transpose(1, 2))  # (N, H*W, 5)
        scores = tokens @ tokens.transpose(1, 2)
        mixed = torch.bmm(scores, tokens)
        return F.scaled_dot_product_attention(mixed, tokens, tokens).mean(1)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # output positions x kernel area x input channels per group x output channels
        (nn.Conv2d(4, 6, 3, padding=1), 8 * 8 * 9 * 4 * 6),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), 4 * 4 * 9 * 4 * 6),
        (nn.Conv2d(4, 6, 3), 6 * 6 * 9 * 4 * 6),
        (nn.Conv2d(4, 6, (1, 3), dilation=2), 8 * 4 * 3 * 4 * 6),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), 8 * 8 * 9 * 2 * 6),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 8 * 8 * 9 * 4),
        # each input position meets the whole kernel
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 8 * 8 * 4 * 4 * 6),
        (nn.Sequential(nn.Flatten(), nn.Linear(4 * 8 * 8, 10)), 256 * 10),
        # a linear layer over the last axis is applied at each of the 4 x 8 positions
        (nn.Linear(8, 10), 4 * 8 * 8 * 10),
    ],
)
def test_macs_of_one_layer(layer: nn.Module, expected: int) -> None:
    assert count_macs(layer, (4, 8, 8)).macs == expected


def test_norms_activations_and_pooling_count_nothing() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(2)
    )
    assert count_macs(network, (4, 8, 8)).macs == 0


def test_nested_and_repeated_modules_count_each_call() -> None:
    shared = nn.Conv2d(4, 4, 1)
    network = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), nn.Flatten())
    counted = count_macs(network, (4, 8, 8))
    assert counted.macs == 2 * (8 * 8 * 4 * 4)
    assert counted.by_operator == {"conv": counted.macs}
    assert count_parameters(network) == 4 * 4 + 4


def test_products_of_activations_are_listed_and_not_counted() -> None:
    counted = count_macs(Attention(), (3, 4, 4))
    assert counted.by_operator == {"linear": 16 * 3 * 5}
    assert counted.uncounted == {"bmm": 1, "matmul": 1, "scaled_dot_product_attention": 1}


def test_attention_layers_do_not_hide_their_linear_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2)
            mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return mixed

    counted = count_macs(Block(), (6, 2, 4))  # 6 tokens of width 8
    assert counted.macs == 6 * 8 * (3 * 8) + 6 * 8 * 8
    assert counted.uncounted == {"scaled_dot_product_attention": 1}


def test_counting_leaves_mode_and_running_statistics_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    count_macs(network, (3, 4, 4))
    assert [m.training for m in network.modules()] == [True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_parameters_exclude_buffers_and_count_shared_ones_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    assert count_parameters(network) == 3 * 4 * 9 + 2 * 4
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied) == 4 * 4 + 2 * 4


@pytest.mark.parametrize(
    ("model", "expected"), [("resnet32x4", 7_433_860), ("resnet8x4", 1_233_540)]
)
def test_published_parameter_counts(model: str, expected: int) -> None:
    assert count_parameters(build(model, num_classes=100)) == expected


def test_size_is_header_plus_every_tensor() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    # weight, bias; scale, shift, mean, variance in float32; the counter of batches in int64
    numbers = 4 * (3 * 5 + 5 + 4 * 5) + 8
    header = {
        name: {"dtype": "I64" if t.dtype == torch.int64 else "F32", "shape": list(t.shape)}
        for name, t in network.state_dict().items()
    }
    assert numbers + 8 < size_bytes(network) < numbers + 8 + 2 * len(json.dumps(header)) + 400
    assert size_bytes(network.to(memory_format=torch.channels_last)) == size_bytes(network)
    wider = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    assert abs(size_bytes(wider) - size_bytes(network) - 4 * 5) <= 8  # the header is padded to 8

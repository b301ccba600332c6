"""Peak activation bytes against networks small enough to follow by hand."""

import pytest
import torch
from torch import Tensor, nn

from compress.accounting import peak_activation_bytes

# Bytes of one float32 tensor (1, 2, 4, 4).
MAP = 2 * 4 * 4 * 4


class Branches(nn.Module):
    """a and b live; c joins them; a dies; b and c are concatenated."""

    def forward(self, images: Tensor) -> Tensor:
        a = images + 1
        b = a * 2
        c = b.sum(1, keepdim=True)  # half a map
        del a
        return torch.cat([b, c], 1).flatten(1)


def test_concatenation_by_hand() -> None:
    # a, b, c: 2.5 maps; then b, c and their concatenation: 1 + 0.5 + 1.5; the view adds nothing
    assert peak_activation_bytes(Branches(), (2, 4, 4), 1) == 3 * MAP


def test_a_chain_holds_two_neighbours() -> None:
    chain = nn.Sequential(*[nn.ReLU() for _ in range(5)])
    assert peak_activation_bytes(chain, (2, 4, 4), 1) == 2 * MAP
    assert peak_activation_bytes(nn.ReLU(), (2, 4, 4), 1) == MAP


def test_in_place_layers_need_no_second_map() -> None:
    chain = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU(inplace=True))
    assert peak_activation_bytes(chain, (2, 4, 4), 1) == MAP


def test_a_skip_connection_keeps_its_input_alive() -> None:
    class Skip(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = images * 2
            return x + torch.tanh(torch.tanh(x))

    # x, inner tanh, outer tanh
    assert peak_activation_bytes(Skip(), (2, 4, 4), 1) == 3 * MAP


def test_the_widest_place_counts_and_weights_do_not() -> None:
    network = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 1, 1))
    # 8 channels and then 1; a map has 2
    assert peak_activation_bytes(network, (2, 4, 4), 1) == 4 * MAP + MAP // 2


@pytest.mark.parametrize("batch", [1, 7])
def test_bytes_grow_with_the_batch(batch: int) -> None:
    assert peak_activation_bytes(Branches(), (2, 4, 4), batch) == batch * 3 * MAP


class InPlaceOnItsBuffer(nn.Module):
    """Writes to a buffer and returns a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 2, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.get_buffer("total").add_(images).flatten(1)


@pytest.mark.parametrize("network", [nn.Identity(), nn.Flatten(), InPlaceOnItsBuffer()], ids=type)
def test_views_of_the_input_and_buffers_are_not_counted(network: nn.Module) -> None:
    assert peak_activation_bytes(network, (2, 4, 4), 1) == 0


def test_double_precision_takes_twice_the_bytes() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    single = peak_activation_bytes(network, (2, 4, 4), 1)
    assert peak_activation_bytes(network.double(), (2, 4, 4), 1) == 2 * single

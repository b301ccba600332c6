"""What is found about a network's forward before anything learns in it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.models import build
from compress.models.forward import check_forward, lay_channels_last

SHAPE = (3, 16, 16)


class Small(nn.Module):
    def __init__(self, *, num_classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> object:
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


class Auxiliary(Small):
    """A second head while it learns, as GoogLeNet has."""

    def forward(self, images: Tensor) -> object:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class ChangesItsInput(Small):
    def forward(self, images: Tensor) -> object:
        return super().forward(images.mul_(0.5))


class Maps(Small):
    """Gives maps while it learns."""

    def forward(self, images: Tensor) -> object:
        return self.conv(images) if self.training else super().forward(images)


def is_channels_last(network: Small) -> bool:
    return network.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kind", "learns"), [(Small, True), (Small, False), (Auxiliary, False)])
def test_what_can_serve_passes_and_is_laid_channels_last(kind: type[Small], learns: bool) -> None:
    network = kind()
    before = copy.deepcopy(network.state_dict())
    check_forward(network, SHAPE, learns=learns)
    assert lay_channels_last(network, SHAPE, learns=learns)
    assert is_channels_last(network)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Auxiliary, "gives a tuple in training mode"),
        (Maps, r"gives a tensor of shape \(2, 4, 14, 14\) in training mode"),
    ],
)
def test_who_learns_gives_logits_in_training_mode(kind: type[Small], found: str) -> None:
    network = kind()
    with pytest.raises(UserError, match=found):
        check_forward(network, SHAPE, learns=True)
    check_forward(network, SHAPE, learns=False)


def test_auxiliary_outputs_leave_the_layout_as_it_was() -> None:
    network = Auxiliary()
    assert not lay_channels_last(network, SHAPE)
    assert not is_channels_last(network)


@pytest.mark.parametrize("learns", [True, False])
def test_a_changed_input_is_refused(learns: bool) -> None:
    with pytest.raises(UserError, match="ChangesItsInput changes its input in place"):
        check_forward(ChangesItsInput(), SHAPE, learns=learns)


def test_a_published_network_with_auxiliary_heads_teaches_but_does_not_learn() -> None:
    network = build("torchvision:googlenet", num_classes=5, init_weights=False)
    assert lay_channels_last(network, (3, 32, 32), learns=False)
    with pytest.raises(UserError, match="GoogLeNetOutputs in training mode"):
        check_forward(network, (3, 32, 32), learns=True)

"""Checks of a network's forward, and its memory format."""

import copy

import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.seeding import seeded

CHANGES_ITS_INPUT = (
    "changes its input in place, which others read too; let its forward work on a copy "
    "(images.clone())"
)


def lay_channels_last(
    network: nn.Module, input_shape: tuple[int, int, int], *, learns: bool = True
) -> bool:
    """Put a network into channels last memory format, in which convolutions run faster.

    Changes the order of its weights in memory, in place, and no value. A `forward` that takes a
    `view` of a feature map may not allow it; that is copied on a copy in training and in eval mode,
    and the network is then left as it was.

    Args:
        network: takes images (N, C, H, W).
        input_shape: (C, H, W).
        learns: the network will also run in training mode.

    Returns:
        True if the network is in channels last format now.
    """
    copied = copy.deepcopy(network).to(memory_format=torch.channels_last)
    images = _images(network, input_shape)
    try:
        with seeded("channels last"):
            if learns:
                output = copied.train()(images)
                if not isinstance(output, Tensor):
                    return False
                output.sum().backward()  # type: ignore[no-untyped-call]
            copied.eval()(images)
    except (RuntimeError, UserError):
        return False
    network.to(memory_format=torch.channels_last)
    return True


def check_forward(
    network: nn.Module, input_shape: tuple[int, int, int], *, learns: bool, dense: bool = False
) -> None:
    """Refuse a network that no recipe can use; a copy is run once in each of its modes.

    Args:
        dense: its output is a map of logits.

    Raises:
        UserError: it changes its input in place or, where it `learns`, does not give one tensor of
            logits in training mode.
    """
    copied, name = copy.deepcopy(network), type(network).__name__
    for training in (False, True) if learns else (False,):
        images = _images(network, input_shape)
        before = images._version
        with seeded("forward"), torch.no_grad():
            output = copied.train(training)(images)
        if images._version != before:
            raise UserError(f"{name} {CHANGES_ITS_INPUT}")
        if training and not (isinstance(output, Tensor) and output.dim() == (4 if dense else 2)):
            shape = "(images, classes, height, width)" if dense else "(images, classes)"
            raise UserError(
                f"{name} gives {_kind(output)} in training mode, and one tensor of logits {shape} "
                "is needed to learn; build it without auxiliary outputs, as with "
                "aux_logits: false"
            )


def _kind(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"


def _images(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    return torch.zeros(2, *input_shape, device=next(network.parameters()).device)

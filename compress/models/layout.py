"""How the maps of a network lie in memory."""

import copy

import torch
from torch import nn

from compress.errors import UserError
from compress.randomness import seeded


def lay_channels_last(network: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Let a network's maps lie channels last in memory, which convolutions read faster.

    Changes the order of its weights in memory, in place, and no value. A `forward` that takes a
    `view` of a map may not allow it, found on a copy that learns and judges: the network is then
    left as it was.

    Args:
        network: takes images (N, C, H, W).
        input_shape: (C, H, W).

    Returns:
        Whether they do.
    """
    tried = copy.deepcopy(network).to(memory_format=torch.channels_last)
    images = torch.zeros(2, *input_shape, device=next(network.parameters()).device)
    try:
        with seeded("channels last"):
            tried.train()(images).sum().backward()
            tried.eval()(images)
    except (RuntimeError, UserError):
        return False
    network.to(memory_format=torch.channels_last)
    return True

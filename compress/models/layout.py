"""How the maps of a network lie in memory."""

import torch
from torch import nn

from compress.errors import UserError


def lay_channels_last(network: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Let a network's maps lie channels last in memory, which convolutions read faster.

    Changes the order of its weights in memory, in place, and no value. A `forward` that takes a
    `view` of a map may not allow it: the network is then left as it was.

    Args:
        network: takes images (N, C, H, W).
        input_shape: (C, H, W).

    Returns:
        Whether they do.
    """
    device, training = next(network.parameters()).device, network.training
    network.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *input_shape, device=device))
    except (RuntimeError, UserError):
        network.to(memory_format=torch.contiguous_format)
        return False
    finally:
        network.train(training)
    return True

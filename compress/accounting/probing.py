"""Running any network once without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


def blank_images(module: nn.Module, input_shape: tuple[int, int, int], batch: int) -> Tensor:
    """Zeros (batch, C, H, W) on the network's device and in its floating type."""
    tensors = chain(module.parameters(), module.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return torch.zeros(batch, *input_shape, device=like.device, dtype=like.dtype)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards each submodule has its own mode again."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode

"""Networks whose batch norm has seen images, as after training, so that folding it tells."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.taps import switch_off_inplace


def trained(network: nn.Module, *, size: int) -> nn.Module:
    """The network in eval mode, statistics and scales of its batch norms unlike any default."""
    switch_off_inplace(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.momentum = 1.0
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        network.train()(torch.randn(8, 3, size, size, generator=generator))
    return network.eval()

"""Number of parameters of a network, and bytes of its file."""

from safetensors.torch import save
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Parameters, trainable or frozen, batch norm's scale and shift included; buffers are not.

    A parameter that the network uses in two places is counted once. This is the number that the
    papers print.
    """
    return sum(p.numel() for p in module.parameters())


def size_bytes(module: nn.Module) -> int:
    """Bytes of the network's state (parameters and buffers) as one safetensors file.

    The file's header of names and shapes is included, metadata is not. A tensor under two names
    is stored twice, as safetensors shares nothing.
    """
    state = {k: t.detach().cpu().contiguous().clone() for k, t in module.state_dict().items()}
    return len(save(state))

"""Heads on pooled vectors that several methods have in common."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.precision import in_float32


def two_layer_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: (N, width) -> (N, out)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


def register_classifier(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a module copies of a teacher's `weight` (K, D) and `bias` (K,) or None.

    They are buffers: no optimiser moves them, while the gradient passes through.
    """
    module.register_buffer("weight", weight.clone())
    module.register_buffer("bias", None if bias is None else bias.clone())


@in_float32
def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of a head of the method's own: logits (N, K), labels (N,)."""
    return cross_entropy(logits, labels)

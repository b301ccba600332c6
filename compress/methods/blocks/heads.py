"""Heads on pooled vectors that several methods have in common."""

from torch import nn


def two_layer_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: (N, width) -> (N, out)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )

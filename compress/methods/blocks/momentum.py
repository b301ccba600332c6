"""Networks that follow another one slowly."""

from collections.abc import Iterable

from torch import nn


def move_average(
    slow: Iterable[nn.Parameter], fast: Iterable[nn.Parameter], momentum: float
) -> None:
    """Move parameters in place: momentum of what they are, the rest of what `fast` is."""
    for old, new in zip(slow, fast, strict=True):
        old.lerp_(new, 1 - momentum)

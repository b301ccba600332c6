"""The processes of one training: each sees its own part of a batch.

`torch.distributed` is used where it has been initialised; one process alone is rank 0 of 1.
"""

import torch
from torch import Tensor, distributed


def rank() -> int:
    """The number of this process, counted from 0."""
    return distributed.get_rank() if _several() else 0


def gathered(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes in the order of their ranks, without gradient.

    The processes may have different numbers of rows; exchanging these waits for the device. With
    one process the result is its own rows, and nothing waits.
    """
    rows = rows.detach()
    if not _several():
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    found = [torch.zeros_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    counts = [int(count) for count in found]
    # Every process must send the same shape.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()

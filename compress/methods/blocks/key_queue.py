"""A dictionary of the latest keys, first in, first out: for contrast with earlier batches."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from compress.distributed.collectives import all_gather_in_order
from compress.precision import in_float32


@in_float32
def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float = 0.1) -> Tensor:
    """-log(e^(q k / tau) / (e^(q k / tau) + sum_i e^(q k_i / tau))), the mean over the images.

    Args:
        queries: q, (N, D); normalised here.
        keys: k of the same images, (N, D), of length 1, constants.
        queue: k_i, (N_q, D), of length 1.

    Returns:
        A scalar > 0 in float32 or wider.
    """
    queries = normalize(queries)
    positive = (queries * keys).sum(1, keepdim=True)
    scores = torch.cat([positive, queries @ queue.t()], 1) / temperature
    return cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))


class KeyQueue(nn.Module):
    """The latest keys (size, D) of length 1, at first random ones.

    Keys are collected during a step and written after it, in the order in which one process has the
    rows of the step's batch. Nothing waits for the device.
    """

    keys: Tensor
    position: Tensor  # of the oldest key

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size is at least 1, got {size}")
        self.register_buffer("keys", normalize(torch.randn(size, width)))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self._collected: list[tuple[Tensor, Tensor]] = []
        # A trial pass puts the state back afterwards, and what it saw is not to be written.
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def collect(self, keys: Tensor, rows: Tensor) -> None:
        """Keep keys (N, D), those of a part of a step's batch, until `write`.

        Args:
            rows: the numbers (N,) of their images in the whole step's batch, on the CPU.
        """
        self._collected.append((keys.detach(), rows))

    @torch.no_grad()
    def write(self) -> None:
        """Replace the oldest keys by those collected; of more than fit, the last count."""
        if not self._collected:
            return
        keys, rows = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected = []
        keys, size = all_gather_in_order(keys, rows), len(self.keys)
        places = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places[-size:], keys[-size:].to(self.keys.dtype))
        self.position.add_(len(keys)).remainder_(size)

    def note(self) -> str:
        """The queue in words."""
        size, width = self.keys.shape
        megabytes = size * width * 4 / 1e6
        return f"a queue of {size:,} x {width:,} float32: {megabytes:,.2f} MB"


def _forget(queue: KeyQueue, _: object) -> None:
    queue._collected = []

"""Random numbers that are a pure function of named parts, never of what ran before.

Nothing that trains draws from the global generators as they happen to stand: a draw is keyed by
(seed, role, epoch, ...), so that adding a method, resuming or changing the number of workers
changes no other bits.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*parts)`."""
    return torch.Generator().manual_seed(seed_for(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them afterwards.

    For code that can only draw globally: initialisers, dropout, torchvision's RoI sampling.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_for(*parts))
        yield

"""Four turns of each image, which the student sees in one batch, and cosines between them."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from compress.methods.contract import View, Views

TURNS = (0, 90, 180, 270)
TURNED_VIEWS = tuple(
    View(rotation=turn, joined=turn > 0, mirrored_like=0 if turn else None) for turn in TURNS
)


def of_all_turns(views: Views, kind: str) -> Tensor:
    """A tap of all four views, one after the other: (4N, ...), the images as they are first."""
    return torch.cat([taps.tensor(kind) for taps in views if taps is not None])


def turned_cosines(rows: Tensor, images: int) -> Tensor:
    """Cosines (M - N, N) of the turned images and those as they are.

    Args:
        rows: features (M, C) of N images as they are, then of the turned ones.
        images: N.
    """
    rows = normalize(rows)
    return rows[images:] @ rows[:images].t()

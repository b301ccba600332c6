"""For methods with a memory bank: embeddings, scores against it, its update, draws by class.

A bank (train_size, D) has a row per training image. Anchors are scored against every row by one
product and the wanted scalars are picked out of it, so no (N, K, D) tensor is ever made.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from compress.precision import in_float32

# The product of N anchors and a bank has N * train_size elements, and so have the keys of a draw
# without replacement; above this many, both are made for a part of the anchors at a time. A part
# takes 134 MB in float32.
LARGEST_PRODUCT = 2**25
# Draws are without replacement up to this many training images. The keys of a draw grow with the
# images; for a million of them repeats are rare, and the CRD authors' ImageNet loader allows them.
LARGEST_DISTINCT = 2**17


@in_float32
def embed(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, C) -> (N, D) of length 1."""
    return normalize(linear(features, weight, bias))


@in_float32
def bank_scores(anchors: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Inner products of each anchor with rows of the bank, which is a constant.

    Args:
        anchors: (N, D); only these get a gradient.
        bank: (rows, D).
        index: (N, C), rows of the bank for each anchor.

    Returns:
        (N, C).
    """
    scores: Tensor = _Scores.apply(anchors, bank, index)
    return scores


class _Scores(torch.autograd.Function):
    """Picks from anchors @ bank.T; autograd would keep that product, or N * C rows of the bank."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(bank, index)
        size = _at_once(len(bank))
        parts = zip(torch.split(anchors, size), torch.split(index, size), strict=True)
        return torch.cat([(some @ bank.t()).gather(1, columns) for some, columns in parts])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        bank, index = ctx.saved_tensors
        size = _at_once(len(bank))
        gradients = []
        with torch.autocast(bank.device.type, enabled=False):
            parts = zip(torch.split(gradient, size), torch.split(index, size), strict=True)
            for some, columns in parts:
                spread = some.new_zeros(len(some), len(bank)).scatter_add_(1, columns, some)
                gradients.append(spread @ bank)
        return torch.cat(gradients), None, None


def _at_once(rows: int) -> int:
    return max(1, LARGEST_PRODUCT // max(1, rows))


def uniform_bank(rows: int, features: int) -> Tensor:
    """A new bank: uniform within +-1 / sqrt(features / 3), so that rows have length 1 on average.

    The length is that of the root mean square; rows are not normalised until they are written.
    """
    limit = (features / 3) ** -0.5
    return torch.empty(rows, features).uniform_(-limit, limit)


@torch.no_grad()
def write_rows(bank: Tensor, index: Tensor, features: Tensor, momentum: float) -> None:
    """Set bank[y] to the normalised momentum * bank[y] + (1 - momentum) * v, in place.

    Args:
        bank: (rows, D).
        index: y, (N,). Of equal ones the last counts, on any device.
        features: v, (N, D).
        momentum: share of what the row was.
    """
    places = torch.arange(len(index), device=index.device)
    last = ((index[:, None] == index) * places).amax(1)
    moved = momentum * bank[index] + (1 - momentum) * features[last].to(bank.dtype)
    bank.index_copy_(0, index, normalize(moved))


def bank_bytes(rows: int, features: int) -> int:
    """Bytes of the two banks of a pair of networks, 4 per number."""
    return 2 * rows * features * 4


def bank_note(rows: int, features: int, teachers: int) -> str:
    """The banks in words, in total over the teachers."""
    each = f" for each of {teachers} teachers" if teachers > 1 else ""
    megabytes = teachers * bank_bytes(rows, features) / 1e6
    return f"two memory banks of {rows:,} x {features} float32{each}: {megabytes:,.2f} MB"


class ClassSampler(nn.Module):
    """Draws training images of an anchor's class, or of all other classes, each equally likely.

    Draws are made on the device of the labels, for a batch at a time. What is kept is derived from
    the labels (train_size,) and no part of the state.
    """

    labels: Tensor
    order: Tensor  # the images, sorted by class
    count: Tensor  # of images per class
    start: Tensor  # of each class in `order`

    def __init__(self, labels: Tensor, negatives: int) -> None:
        """Sort the images; `negatives` is K of `others`.

        Raises:
            ValueError: K is below 1, or no image has one of another class.
        """
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives is at least 1, got {negatives}")
        if len(labels) and len(torch.unique(labels)) == 1:
            raise ValueError(
                "negatives are images of other classes; "
                f"all {len(labels)} training images are of one class"
            )
        count = torch.bincount(labels, minlength=1)
        self.negatives = negatives
        self.fewest_others = len(labels) - int(count.max())
        self.distinct = negatives <= self.fewest_others and len(labels) <= LARGEST_DISTINCT
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)

    def notes(self) -> list[str]:
        """Says where draws repeat."""
        if self.distinct:
            return []
        return [
            f"draws {self.negatives:,} negatives per image with repeats, from "
            f"{self.fewest_others:,} or more images of other classes"
        ]

    def same(
        self, classes: Tensor, generator: torch.Generator, start: int = 0, whole: int = 0
    ) -> Tensor:
        """One image of each class: (N,) -> (N,).

        Where `classes` are those from `start` of a batch of `whole`, the draws are the whole's.
        """
        drawn = _integers(torch.Size((whole or len(classes),)), generator)
        position = drawn[start : start + len(classes)] % self.count[classes]
        return self.order[self.start[classes] + position]

    def others(
        self, classes: Tensor, generator: torch.Generator, start: int = 0, whole: int = 0
    ) -> Tensor:
        """K images of other classes for each class: (N,) -> (N, K); `start`, `whole` as in `same`.

        They are distinct unless `distinct` is False.
        """
        whole = whole or len(classes)
        if self.distinct:
            return self._distinct(classes, generator, start, whole)
        own, first_own = self.count[classes][:, None], self.start[classes][:, None]
        drawn = _integers(torch.Size((whole, self.negatives)), generator)
        position = drawn[start : start + len(classes)] % (len(self.order) - own)
        return self.order[position + (position >= first_own) * own]

    def _distinct(
        self, classes: Tensor, generator: torch.Generator, start: int, whole: int
    ) -> Tensor:
        """The images with the highest of random keys; 31 bits, so that hardly two are equal."""
        size, end = _at_once(len(self.labels)), start + len(classes)
        drawn: list[Tensor] = []
        for first in range(0, end, size):  # rows before the own ones, too: they move the generator
            shape = min(size, whole - first), len(self.labels)
            keys = torch.empty(shape, dtype=torch.int32, device=classes.device)
            own = keys.random_(generator=generator)[max(0, start - first) : end - first]
            done = sum(len(rows) for rows in drawn)
            of = classes[done : done + len(own)]
            own = own.masked_fill_(self.labels == of[:, None], -1)
            drawn.append(own.topk(self.negatives, dim=1, sorted=False).indices)
        return torch.cat(drawn)


def _integers(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """From 0 to 2^63 - 1: the remainder by any number of images is as good as uniform."""
    drawn = torch.empty(shape, dtype=torch.long, device=generator.device)
    return drawn.random_(generator=generator)

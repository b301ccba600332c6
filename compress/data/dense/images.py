"""Images with masks as the rest of the project takes images: four channels, RGB and the class."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from compress.data.dense.views import Scales, central_crop, random_crop
from compress.errors import UserError

_MOST_PIXELS = 2**20  # of the images that are evaluated at once


class Item(Protocol):
    """An image and its mask, read on demand."""

    def pixels(self) -> Tensor:
        """(3, H, W) uint8 RGB."""
        ...

    def classes(self) -> Tensor:
        """(H, W) int64 classes, 255 where void."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def identity(self, *, exact: bool) -> str:
        """What tells the item from others; `exact` from the same file as it was before, too."""
        ...


@dataclass(frozen=True)
class MaskedPixels:
    """An image (3, H, W) uint8 and its mask (H, W) uint8 in memory."""

    image: Tensor
    mask: Tensor

    def pixels(self) -> Tensor:
        """See `Item`."""
        return self.image

    def classes(self) -> Tensor:
        """See `Item`."""
        return self.mask.long()

    def size(self) -> tuple[int, int]:
        """See `Item`."""
        return self.mask.shape[0], self.mask.shape[1]

    def identity(self, *, exact: bool) -> str:
        """See `Item`."""
        content = self.image.numpy().tobytes() + self.mask.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(eq=False)
class MaskedImages:
    """Images with masks; see `compress.data.images.Images`.

    What is fetched is uint8 (N, 4, H, W): RGB and the class of each pixel, which
    `compress.data.images.split_labels` takes apart. Training views are scaled by a factor from
    `scales[0]` to `scales[1]` and, with `flip`, half of them are mirrored. Images have no label
    as a whole: `labels` are zeros.
    """

    items: tuple[Item, ...]
    mean: tuple[float, float, float]
    scales: Scales | None = None
    flip: bool = True
    hidden_labels: Tensor | None = None
    labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.labels = torch.zeros(len(self.items), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.items)

    def with_views(self, scales: Sequence[float] | None, *, flip: bool) -> "MaskedImages":
        """The same images, whose training views are made so."""
        low_high = None if scales is None else (scales[0], scales[1])
        return replace(self, scales=low_high, flip=flip)

    def fetch(self, indices: Tensor) -> Tensor:
        """Whole images of one size, (N, 4, H, W).

        Raises:
            UserError: they differ in size; `in_batches` gives those that do not.
        """
        images = [self.fetch_original(int(i)) for i in indices]
        shapes = {tuple(image.shape[1:]) for image in images}
        if len(shapes) > 1:
            raise UserError(f"images of {len(shapes)} sizes cannot be one batch")
        return torch.stack(images)

    def fetch_original(self, index: int) -> Tensor:
        """(4, H, W)."""
        item = self.items[index]
        return _joined(item.pixels(), item.classes())

    def fetch_square(self, indices: Tensor, size: int) -> Tensor:
        """The centre of each, (N, 4, size, size)."""
        items = [self.items[int(i)] for i in indices]
        cut = [central_crop(i.pixels(), i.classes(), crop=size, mean=self.mean) for i in items]
        return torch.stack([_joined(*pair) for pair in cut])

    def scaled_crop(self, index: int, seed: int, size: int, *, mirrored: bool) -> Tensor:
        """A training view (4, size, size), which depends on `seed` alone."""
        item = self.items[index]
        pixels, mask = random_crop(
            item.pixels(),
            item.classes(),
            crop=size,
            scales=self.scales,
            mean=self.mean,
            draw=torch.Generator().manual_seed(seed),
        )
        view = _joined(pixels, mask)
        return view.flip(-1) if mirrored and self.flip else view

    def in_batches(self, most: int) -> list[Tensor]:
        """Indices of all in order, of equal size together; see `Images`."""
        batches: list[Tensor] = []
        for (height, width), group in groupby(range(len(self)), lambda i: self.items[i].size()):
            count = max(1, min(most, _MOST_PIXELS // (height * width)))
            batches += torch.split(torch.tensor([*group]), count)
        return batches

    def subset(self, indices: Tensor) -> "MaskedImages":
        """See `Images`."""
        return replace(self, items=tuple(self.items[int(i)] for i in indices))

    def without_labels(self) -> "MaskedImages":
        """See `Images`.

        Raises:
            UserError: masks are what such images are for.
        """
        raise UserError("data.labels: images with masks are learned from with their masks")

    def to(self, device: torch.device) -> "MaskedImages":
        """See `Images`."""
        return self

    def digest(self) -> str:
        """Names and sizes of files stand for their content."""
        return self._digest_of(exact=False)

    def version(self) -> str:
        """See `Images`; the views are part of it."""
        return self._digest_of(exact=True)

    def _digest_of(self, *, exact: bool) -> str:
        lines: Sequence[str] = [item.identity(exact=exact) for item in self.items]
        text = "\n".join([*lines, repr((self.scales, self.flip))])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _joined(pixels: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([pixels, mask[None].to(torch.uint8)])

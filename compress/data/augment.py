"""Augmentation of a whole batch at a time, from parameters that were drawn beforehand.

An augmentation is two functions: `draw` gives each image of an epoch one integer (its view id),
`apply` computes the view from image and id. An id stands for exactly one view, so that anything
stored under (image, id) belongs to that very view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from compress.data.dense.images import MaskedImages
from compress.data.images import Images
from compress.data.moco_views import moco_view
from compress.data.rand_augment import rand_augment_view
from compress.errors import UserError

PAD = 4
_SHIFTS = 2 * PAD + 1
_SEEDS = 1 << 32  # as many starting points has torch's generator
_TRIES = 10  # torchvision's


@dataclass(frozen=True)
class Augmentation:
    """`views` distinct views; `apply(images, indices, ids, S)` gives uint8 (N, 3, S, S).

    `mirror(ids, like)` gives the views `ids` mirrored where those of `like` are.
    """

    views: int
    apply: Callable[[Images, Tensor, Tensor, int], Tensor]
    mirror: Callable[[Tensor, Tensor], Tensor] = lambda ids, like: ids

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """View ids (count,) int64, uniform."""
        return torch.randint(self.views, (count,), generator=generator)


@dataclass(frozen=True)
class ImageView:
    """A view of each image: an augmentation, then a turn.

    rotation: 0, 90, 180 or 270 degrees counter-clockwise. mirrored_like: the number of an earlier
    view of the same augmentation; all else is drawn independently, but both are mirrored or none.
    """

    augment: str
    rotation: int = 0
    mirrored_like: int | None = None

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation is 0, 90, 180 or 270 degrees, got {self.rotation}")

    @property
    def label(self) -> str:
        """`crop_flip`, `crop_flip turned by 90`."""
        return f"{self.augment} turned by {self.rotation}" if self.rotation else self.augment

    def draw(self, count: int, earlier: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """View ids (count,); `earlier` are those of the views before."""
        augmentation = AUGMENTATIONS[self.augment]
        ids = augmentation.draw(count, generator)
        like = None if self.mirrored_like is None else earlier[self.mirrored_like]
        return ids if like is None else augmentation.mirror(ids, like)

    def turn(self, images: Tensor) -> Tensor:
        """Rotate images (N, 3, S, S)."""
        if not self.rotation:
            return images
        return images.rot90(self.rotation // 90, (2, 3)).contiguous()


def shift_and_flip(images: Tensor, ids: Tensor) -> Tensor:
    """Zero-pad by 4, cut at the id's offset, mirror where the id says so.

    Args:
        images: uint8 (N, 3, S, S).
        ids: (N,), id = (row offset * 9 + column offset) + 81 * flip.

    Returns:
        uint8 (N, 3, S, S).
    """
    count, channels, height, width = images.shape
    ids = ids.to(images.device)
    padded = torch.nn.functional.pad(images, (PAD, PAD, PAD, PAD))
    flip, offset = ids // _SHIFTS**2, ids % _SHIFTS**2
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flip.bool()[:, None], columns.flip(1), columns)
    columns = columns + (offset % _SHIFTS)[:, None]
    rows = torch.arange(height, device=images.device) + (offset // _SHIFTS)[:, None]
    # One gather over flattened pixels: measured several times faster than indexing by two axes.
    places = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    places = places.view(count, 1, -1).expand(count, channels, -1)
    return padded.flatten(2).gather(2, places).view_as(images)


def _mirror_crop(ids: Tensor, like: Tensor) -> Tensor:
    """Of two ids of `shift_and_flip`, the offset of the first and the flip of the second."""
    return ids % _SHIFTS**2 + like // _SHIFTS**2 * _SHIFTS**2


def _mirror_resized(ids: Tensor, like: Tensor) -> Tensor:
    """Of two ids of `_one_crop`, the box of the first and the flip of the second."""
    return ids - ids % 2 + like % 2


def _crop_flip(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    return shift_and_flip(images.fetch(indices), ids)


def _resized_crop(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    """A crop as torchvision's RandomResizedCrop takes it by default, mirrored or not."""
    views = [_one_crop(images.fetch_original(int(i)), int(v), size) for i, v in zip(indices, ids)]  # noqa: B905
    return torch.stack(views)


def _one_crop(image: Tensor, view: int, size: int) -> Tensor:
    seed, flip = divmod(view, 2)
    box = crop_box(image.shape[-2], image.shape[-1], seed)
    cut: Tensor = F.resized_crop(image, *box, [size, size], antialias=True)
    return cut.flip(-1) if flip else cut


def crop_box(height: int, width: int, seed: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, distributed as torchvision's.

    Area 8 to 100 % and aspect 3/4 to 4/3 are drawn until the image holds the crop, at most ten
    times; then it is the largest central one of such an aspect. This is not torchvision's own
    function, because an id must stand for the same view in every version of it.
    """
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.rand(_TRIES, 4, generator=draw, dtype=torch.float64)
    for size, shape, down, right in numbers.tolist():
        area = (0.08 + 0.92 * size) * height * width
        aspect = (3 / 4) * (16 / 9) ** shape
        h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def _moco(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    """The views of MoCo v2, of images that are prepared as for evaluation."""
    return moco_view(images.fetch(indices), ids)


def _rand_augment(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    """RandAugment's views, of images that are prepared as for evaluation."""
    return rand_augment_view(images.fetch(indices), ids)


def _as_is(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    return images.fetch_square(indices, size)


def _scaled_crop(images: Images, indices: Tensor, ids: Tensor, size: int) -> Tensor:
    """Views of images with masks, see `MaskedImages.scaled_crop`; the id's last bit mirrors."""
    if not isinstance(images, MaskedImages):
        raise UserError("data.augment: scaled_crop is for images with masks; use resized_crop")
    views = [
        images.scaled_crop(int(i), int(v) // 2, size, mirrored=bool(v % 2))
        for i, v in zip(indices, ids)  # noqa: B905
    ]
    return torch.stack(views)


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "crop_flip": Augmentation(2 * _SHIFTS**2, _crop_flip, _mirror_crop),
    "crop": Augmentation(_SHIFTS**2, _crop_flip),
    "resized_crop": Augmentation(2 * _SEEDS, _resized_crop, _mirror_resized),
    "moco": Augmentation(_SEEDS, _moco),
    "rand_augment": Augmentation(_SEEDS, _rand_augment),
    "scaled_crop": Augmentation(2 * _SEEDS, _scaled_crop, _mirror_resized),
    "none": Augmentation(1, _as_is),
}

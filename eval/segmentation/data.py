"""Images with masks in the layout of PASCAL VOC segmentation, checked when they are opened.

A mask is a PNG whose pixel values are class indices (palette or grey); 255 is void and ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from compress.errors import UserError
from eval.digit_scenes import prepare

VOID = 255
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPEG", ".JPG")


@dataclass(frozen=True)
class MaskedImage:
    """One image and its mask: files of the same height and width."""

    image: Path
    mask: Path

    def pixels(self) -> Tensor:
        """(3, H, W) uint8 RGB."""
        with _opened(self.image) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def classes(self) -> Tensor:
        """(H, W) int64 class indices, 255 where void."""
        with _opened(self.mask) as mask:
            if mask.mode not in ("P", "L"):
                raise UserError(f"{self.mask} is no mask of class indices (mode {mask.mode}).")
            return torch.from_numpy(np.array(mask)).long()


@dataclass(frozen=True)
class SegmentationData:
    """Training and test images; class 0 is background in VOC's sense."""

    class_names: tuple[str, ...]
    train: tuple[MaskedImage, ...]
    test: tuple[MaskedImage, ...]


def voc_segmentation(
    folder: Path, *, root: str, classes: tuple[str, ...], train: str = "train", test: str = "val"
) -> SegmentationData:
    """VOC layout: `ImageSets/Segmentation/<split>.txt`, `JPEGImages/*`, `SegmentationClass/*.png`.

    `classes` names the mask values 0, 1, 2, ... in order, background included.
    """
    names = tuple(classes)
    splits = [_read_split(Path(root), split, len(names)) for split in (train, test)]
    return SegmentationData(names, splits[0], splits[1])


def digit_scenes(
    folder: Path,
    *,
    classes: int = 4,
    train_images: int = 200,
    test_images: int = 100,
    image_size: int = 64,
    seed: int = 0,
) -> SegmentationData:
    """Scenes of held-out digits, written below `folder` and read from there in VOC's layout."""
    root, names = prepare(
        folder,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
        image_size=image_size,
        seed=seed,
    )
    return voc_segmentation(folder, root=str(root), classes=("background", *names))


DATASETS: Mapping[str, Callable[..., SegmentationData]] = {
    "voc_segmentation": voc_segmentation,
    "digit_scenes": digit_scenes,
}


def _read_split(root: Path, split: str, classes: int) -> tuple[MaskedImage, ...]:
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        stems = path.read_text().split()
    except FileNotFoundError:
        raise UserError(f"{path} not found.") from None
    if not stems:
        raise UserError(f"{path} lists no image.")
    return tuple(_checked(root, stem, classes) for stem in stems)


def _checked(root: Path, stem: str, classes: int) -> MaskedImage:
    folder = root / "JPEGImages"
    image = next((p for s in _SUFFIXES if (p := folder / (stem + s)).is_file()), None)
    if image is None:
        raise UserError(f"{folder / stem}.jpg or .png not found.")
    item = MaskedImage(image, root / "SegmentationClass" / f"{stem}.png")
    values = item.classes()
    with _opened(image) as opened:
        width, height = opened.size
    if values.shape != (height, width):
        raise UserError(
            f"{item.mask} has {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{image.name} has {width} x {height}."
        )
    largest = _largest(values)
    if largest >= classes:
        raise UserError(f"{item.mask} has class {largest}; there are classes 0 to {classes - 1}.")
    return item


def _largest(values: Tensor) -> int:
    valid = values[values != VOID]
    return int(valid.max()) if len(valid) else 0


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise UserError(f"{path} not found.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from None

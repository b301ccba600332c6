"""A few test images with their masks as files, for people to look at.

`masks/00012-photo.png`, `00012-truth.png` and, of each network, `00012-mask.png`; of masks a
pixel's value is its class, 255 where it has none.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data.dense.images import MaskedImages
from compress.data.images import evenly

SAMPLES = "masks"
COUNT = 4


def sample_numbers(images: MaskedImages) -> list[int]:
    """The test images that are kept, from all over the split."""
    numbers: list[int] = evenly(images, COUNT).tolist()
    return numbers


def photo_file(number: int) -> str:
    """The name of an image's own file."""
    return f"{number:05d}-photo.png"


def truth_file(number: int) -> str:
    """The name of its true mask."""
    return f"{number:05d}-truth.png"


def mask_file(number: int) -> str:
    """The name of a network's mask of it."""
    return f"{number:05d}-mask.png"


def write_photos(folder: Path, images: MaskedImages) -> None:
    """Write the images and their true masks to `folder/masks`."""
    place = folder / SAMPLES
    place.mkdir(exist_ok=True)
    for number in sample_numbers(images):
        item = images.items[number]
        pixels = item.pixels().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(place / photo_file(number))
        Image.fromarray(item.classes().numpy().astype(np.uint8)).save(place / truth_file(number))


def write_sample_masks(folder: Path, masks: Mapping[int, Tensor]) -> None:
    """Write predicted classes (H, W) by image to `folder/masks`, in place of earlier ones."""
    place = folder / SAMPLES
    place.mkdir(exist_ok=True)
    for number, mask in masks.items():
        Image.fromarray(mask.to(torch.uint8).numpy()).save(place / mask_file(number))

"""Scenes composed from small digit images, with boxes and masks that are known exactly.

They stand in for a detection or segmentation data set where none is at hand: one to three digits
of 16 to 24 pixels on a textured background, written in the formats of COCO and PASCAL VOC and as
folders of crops, so that the readers for real data read them too. The digits of the train and the
test scenes are disjoint, and the caller hands in digits that the distillation never trained on.
Everything is a function of the seed.

    annotations/instances_{train,val}.json  {train,val}/*.png                    COCO
    JPEGImages  Annotations  SegmentationClass  ImageSets/{Main,Segmentation}    PASCAL VOC
    crops/{train,test}/<class name>/*.png                                        linear probe
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from compress.console.messages import log
from compress.errors import UserError
from compress.seeding import generator
from compress.storage.files import read_mapping, write_json
from compress.storage.integrity import find_damaged, put_aside, record, require_seal, seal
from eval.data.scene_files import Scene, write_coco, write_voc

SPLITS = ("train", "val")
CROP_SIZE = 28
_COPIES_PER_CROP = 4
_DIGIT_SIDES = (16, 24)
_PLACING_ATTEMPTS = 40
# A stroke pixel belongs to the object where the enlarged digit reaches this share of full ink.
_INK = 0.35


def write_scenes(
    folder: Path,
    digits_pixels: Tensor,
    digits_labels: Tensor,
    *,
    classes: int = 10,
    train_images: int = 200,
    test_images: int = 100,
    image_size: int = 64,
    seed: int = 0,
) -> tuple[str, ...]:
    """Write train and test scenes of the digits 0 .. classes - 1; return the class names.

    digits_pixels (N, 8, 8) uint8 and digits_labels (N,): half of each class's digits appear only
    in train scenes, the other half only in test scenes. A finished folder is left as it is; it
    appears whole or not at all. One that was changed since is put aside and written again.
    """
    if not 1 <= classes <= 10 or not 32 <= image_size <= 64:
        raise UserError(
            "digit_scenes has 1 to 10 classes and images of 32 to 64 pixels, "
            f"not {classes} and {image_size}."
        )
    names = tuple(str(digit) for digit in range(classes))
    written = folder.with_name(folder.name + ".json")
    if folder.exists() and not _is_changed(folder, written):
        return names
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # our own unfinished writing, stopped half-way
    for split, count, first in zip(SPLITS, (train_images, test_images), (0, 1), strict=True):
        pools = _pools(digits_pixels, digits_labels, classes, first)
        scenes = [
            compose(pools, image_size, generator(seed, "scene", split, index))
            for index in range(count)
        ]
        write_coco(partial, split, scenes, names)
        write_voc(partial, split, scenes, names)
        _write_crops(
            partial / "crops" / {"train": "train", "val": "test"}[split], pools, names, split, seed
        )
    write_json(written, seal({"scenes": record(partial)}))
    os.replace(partial, folder)
    return names


def _is_changed(folder: Path, written: Path) -> bool:
    """Return True if the scenes differ from those that were written; put them aside then."""
    if not written.is_file():
        return False  # written before their digest was kept
    try:
        content = read_mapping(written)
        require_seal(content, written, ())
        problem = find_damaged(folder.parent, {folder.name: content["scenes"]}).get(folder.name)
    except UserError as error:
        problem = str(error)
    if problem:
        place = put_aside(folder.parent, [folder.name, written.name])
        log(f"{folder} {problem}; it is now in {place}, and written again")
    return bool(problem)


def _pools(pixels: Tensor, labels: Tensor, classes: int, first: int) -> list[Tensor]:
    """Per class every second digit, from number `first` (0 or 1): (n, 8, 8) in 0..1."""
    pools = []
    for digit in range(classes):
        indices = torch.nonzero(labels == digit).flatten()[first::2]
        if len(indices) == 0:
            raise UserError(f"digit_scenes needs two or more held-out digits of class {digit}.")
        pools.append(pixels[indices].float() / pixels.max())
    return pools


def compose(pools: list[Tensor], image_size: int, draw: torch.Generator) -> Scene:
    """Draw one scene: 1 to 3 digits whose boxes do not overlap. pools[c] is (n, 8, 8) in 0..1."""
    canvas = _background(image_size, draw)
    mask = torch.zeros(image_size, image_size, dtype=torch.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(_integer(1, 3, draw)):
        label = _integer(0, len(pools) - 1, draw)
        ink = _enlarge(
            pools[label][_integer(0, len(pools[label]) - 1, draw)], _integer(*_DIGIT_SIDES, draw)
        )
        place = _free_place(boxes, ink.shape, image_size, draw)
        if place is None:
            continue
        y, x = place
        height, width = ink.shape
        _paint(canvas[:, y : y + height, x : x + width], ink, draw)
        mask[y : y + height, x : x + width][ink >= _INK] = label + 1
        boxes.append((x, y, x + width, y + height))
        labels.append(label)
    return Scene(_to_uint8(canvas), mask.numpy(), tuple(boxes), tuple(labels))


def _integer(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=draw))


def _background(size: int, draw: torch.Generator) -> Tensor:
    """(3, size, size) in 0..1: a dim, smooth, coloured texture with noise in every pixel."""
    coarse = torch.rand(1, 3, 5, 5, generator=draw) * 0.4
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)[
        0
    ]
    return smooth + 0.04 * torch.randn(3, size, size, generator=draw)


def _enlarge(digit: Tensor, side: int) -> Tensor:
    """(8, 8) -> the enlarged digit, cut to the extents of its ink: its box is the mask's."""
    ink = functional.interpolate(
        digit[None, None], size=(side, side), mode="bilinear", align_corners=False
    )[0, 0]
    rows, columns = torch.nonzero(ink >= _INK, as_tuple=True)
    return ink[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]


def _paint(area: Tensor, ink: Tensor, draw: torch.Generator) -> None:
    """Blend a bright colour into area (3, h, w), in place, as strongly as the ink (h, w) says."""
    colour = 0.7 + 0.3 * torch.rand(3, 1, 1, generator=draw)
    area.copy_(area * (1 - ink) + colour * ink)


def _free_place(
    boxes: list[tuple[int, int, int, int]],
    shape: torch.Size,
    image_size: int,
    draw: torch.Generator,
) -> tuple[int, int] | None:
    """A corner (y, x) where a digit of shape (h, w) covers no box; None if chance finds none."""
    height, width = shape
    for _ in range(_PLACING_ATTEMPTS):
        y, x = _integer(0, image_size - height, draw), _integer(0, image_size - width, draw)
        if all(
            x >= x1 or x + width <= x0 or y >= y1 or y + height <= y0 for x0, y0, x1, y1 in boxes
        ):
            return y, x
    return None


def _write_crops(
    folder: Path, pools: list[Tensor], names: tuple[str, ...], split: str, seed: int
) -> None:
    """Every digit of the pools a few times, near the middle of a background of its own."""
    for name, pool in zip(names, pools, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(_COPIES_PER_CROP * len(pool)):
            draw = generator(seed, "crop", split, name, index)
            canvas = _background(CROP_SIZE, draw)
            ink = _enlarge(pool[index // _COPIES_PER_CROP], _integer(*_DIGIT_SIDES, draw))
            height, width = ink.shape
            y = (CROP_SIZE - height) // 2 + _integer(-2, 2, draw)
            x = (CROP_SIZE - width) // 2 + _integer(-2, 2, draw)
            _paint(canvas[:, y : y + height, x : x + width], ink, draw)
            Image.fromarray(_to_uint8(canvas)).save(folder / name / f"{index:04d}.png")


def _to_uint8(canvas: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) around 0..1 -> (H, W, 3) uint8."""
    pixels = canvas.clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return array

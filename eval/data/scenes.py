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

import torch
from PIL import Image
from torch import Tensor

from compress.console.messages import log
from compress.data.scenes import (
    DIGIT_SIDES,
    background,
    compose,
    enlarge_digit,
    integer,
    paint,
    to_uint8,
)
from compress.errors import UserError
from compress.seeding import generator
from compress.storage.files import read_mapping, write_json
from compress.storage.integrity import find_damaged, put_aside, record, require_seal, seal
from eval.data.scene_files import write_coco, write_voc

SPLITS = ("train", "val")
CROP_SIZE = 28
_COPIES_PER_CROP = 4


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


def _write_crops(
    folder: Path, pools: list[Tensor], names: tuple[str, ...], split: str, seed: int
) -> None:
    """Every digit of the pools a few times, near the middle of a background of its own."""
    for name, pool in zip(names, pools, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(_COPIES_PER_CROP * len(pool)):
            draw = generator(seed, "crop", split, name, index)
            canvas = background(CROP_SIZE, draw)
            ink = enlarge_digit(pool[index // _COPIES_PER_CROP], integer(*DIGIT_SIDES, draw))
            height, width = ink.shape
            y = (CROP_SIZE - height) // 2 + integer(-2, 2, draw)
            x = (CROP_SIZE - width) // 2 + integer(-2, 2, draw)
            paint(canvas[:, y : y + height, x : x + width], ink, draw)
            Image.fromarray(to_uint8(canvas)).save(folder / name / f"{index:04d}.png")

"""Labelled pictures for probing an encoder: image folders, STL-10, TinyImageNet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from compress.data import Dataset, FileImages, Images, MemoryImages, Preprocessing, open_data
from compress.data.source import balanced_subset, first_classes
from compress.errors import UserError
from compress.seeding import generator
from compress.storage.user_files import inside, read_listing, require_file
from eval.data.digit_scenes import write_digit_scenes

# Opens the data for an encoder of some preprocessing; `seed` draws subsets.
Opener = Callable[[Preprocessing, int], Dataset]
_STL_SIDE = 96
_RESIZED_AT_ONCE = 1000


def digit_scenes(folder: Path, *, classes: int = 10, seed: int = 0) -> Opener:
    """Single digits on new backgrounds, as an image folder."""
    write_digit_scenes(folder, classes=classes, train_images=1, test_images=1, seed=seed)
    return image_folder(folder, root=str(folder / "crops"))


def image_folder(
    folder: Path,
    *,
    root: str,
    classes: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int | None = None,
) -> Opener:
    """`root/train/CLASS/*` and `root/test/CLASS/*` (or `val`), or balanced subsets of them."""
    spec = {
        "name": "image_folder",
        "root": root,
        "classes": classes,
        "train_images": train_images,
        "test_images": test_images,
        "seed": seed,
    }
    return lambda preprocessing, first: open_data(
        {**spec, "image_size": preprocessing.image_size}, seed=first
    )


def tiny_imagenet(
    folder: Path,
    *,
    root: str,
    classes: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
) -> Opener:
    """TinyImageNet as published: `train/WNID/images/*`, `val/images/*`, `val/val_annotations.txt`.

    The test images are those of `val`, as in the papers; those of `test` have no labels.
    """
    place = Path(root)
    names = tuple(sorted(p.name for p in (place / "train").glob("*") if p.is_dir()))
    if not names:
        raise UserError(f"{place / 'train'} holds no class folders; expected train/WNID/images")
    train = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((place / "train" / name / "images").glob("*.JPEG"))
    ]
    test = _read_val_annotations(place / "val", names)
    for split, images in (("train", train), ("val", test)):
        if not images:
            raise UserError(f"{place / split} holds no images")

    def open_for(preprocessing: Preprocessing, seed: int) -> Dataset:
        at = replace(preprocessing, resize=preprocessing.resize or preprocessing.image_size)
        parts = [
            FileImages([p for p, _ in images], torch.tensor([y for _, y in images]), at, place)
            for images in (train, test)
        ]
        return _select(parts, names, at, (classes, train_images, test_images), seed)

    return open_for


def _read_val_annotations(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Files and labels that `val_annotations.txt` lists: name, WNID and a box, tabs between."""
    listing = folder / "val_annotations.txt"
    if not listing.exists():
        raise UserError(f"{listing} not found; it says of which class each image of val/ is")
    number = {name: label for label, name in enumerate(names)}
    images = []
    for line, text in enumerate(read_listing(listing).splitlines(), 1):
        cells = text.split("\t")
        if len(cells) < 2 or cells[1] not in number:
            raise UserError(f"{listing}, line {line}: no class of train/ in {text[:60]!r}")
        path = inside(folder.parent, folder / "images" / cells[0], cells[0], listing)
        require_file(path, listing)
        images.append((path, number[cells[1]]))
    return images


def stl10(
    folder: Path,
    *,
    root: str,
    classes: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
) -> Opener:
    """STL-10's published binary files, in `root` or `root/stl10_binary`; its labelled images."""
    place = next((p for p in (Path(root) / "stl10_binary", Path(root)) if p.is_dir()), Path(root))
    splits = [_stl_split(place, split) for split in ("train", "test")]
    listing = place / "class_names.txt"
    names = tuple(read_listing(listing).split()) if listing.exists() else ()
    highest = int(max(labels.max() for _, labels in splits)) + 1
    if names and len(names) < highest:
        raise UserError(f"{listing} names {len(names)} classes, labels go up to {highest}")
    names = names or tuple(f"class {number}" for number in range(highest))

    def open_for(preprocessing: Preprocessing, seed: int) -> Dataset:
        at = replace(preprocessing, resize=0)
        parts = [MemoryImages(_resize(p, preprocessing.image_size), y) for p, y in splits]
        return _select(parts, names, at, (classes, train_images, test_images), seed)

    return open_for


def _stl_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 96, 96) uint8 and labels (N,) from 0; images are stored column by column."""
    pixels, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    for path in (pixels, labels):
        if not path.is_file():
            raise UserError(f"{path} not found; expected STL-10's train_X.bin, train_y.bin, ...")
    image_bytes = 3 * _STL_SIDE * _STL_SIDE
    if pixels.stat().st_size == 0 or pixels.stat().st_size % image_bytes:
        raise UserError(f"{pixels} is damaged: it holds no whole number of 96x96 images")
    images = np.fromfile(pixels, dtype=np.uint8).reshape(-1, 3, _STL_SIDE, _STL_SIDE)
    numbers = torch.from_numpy(np.fromfile(labels, dtype=np.uint8)).long() - 1
    if len(numbers) != len(images):
        raise UserError(f"{labels} holds {len(numbers)} labels for {len(images)} images")
    if int(numbers.min()) < 0:
        raise UserError(f"{labels} is damaged: labels count from 1, and one is 0")
    return torch.from_numpy(images.transpose(0, 1, 3, 2).copy()), numbers


def _resize(pixels: Tensor, side: int) -> Tensor:
    parts = torch.split(pixels, _RESIZED_AT_ONCE)
    return torch.cat([F.resize(part, [side, side], antialias=True) for part in parts])


def _select(
    parts: Sequence[Images],
    names: tuple[str, ...],
    preprocessing: Preprocessing,
    wanted: tuple[int | None, int | None, int | None],
    seed: int,
) -> Dataset:
    """The first classes and class-balanced subsets of the two splits."""
    classes, *counts = wanted
    train, test = parts
    if classes:
        train, test, names = first_classes(train, test, names, classes)
    train, test = (
        balanced_subset(images, count, generator(seed, f"{split}_images"), split)
        for images, count, split in zip((train, test), counts, ("train", "test"), strict=True)
    )
    return Dataset(train, None, test, names, preprocessing, "none")


DATASETS: Mapping[str, Callable[..., Opener]] = {
    "digit_scenes": digit_scenes,
    "image_folder": image_folder,
    "stl10": stl10,
    "tiny_imagenet": tiny_imagenet,
}

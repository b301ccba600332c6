"""A user's own image folder: `train/CLASS/*.jpg` and `test/CLASS/*.jpg` (or `val`)."""

import os
from pathlib import Path

import torch

from compress.data.images import FileImages, Preprocessing
from compress.data.source import Source
from compress.errors import UserError
from compress.storage.user_files import require_file

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
_TEST_NAMES = ("test", "val", "valid", "validation")


def image_folder(*, root: str, image_size: int | None = None) -> Source:
    """Images below `root`; class names are the folders' names, normalisation is ImageNet's.

    For evaluation the shorter side is resized to 8/7 of `image_size` (default 224), as torchvision
    does for 224 (256); up to 64 pixels to `image_size` itself.
    """
    train, test, names = _find_splits(root)
    size = image_size or 224
    resize = size if size <= 64 else round(size * 8 / 7)
    preprocessing = Preprocessing(size, _IMAGENET_MEAN, _IMAGENET_STD, resize)
    return Source(
        train=_read(train, names, preprocessing),
        test=_read(test, names, preprocessing),
        class_names=names,
        image_size=size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        resize=resize,
    )


def folder_classes(*, root: str) -> tuple[str, ...]:
    """The names of the classes below `root`; no image is looked for.

    Raises:
        UserError: the folders are not as they must be.
    """
    return _find_splits(root)[2]


def _find_splits(root: str) -> tuple[Path, Path, tuple[str, ...]]:
    """The folders of both splits, and the names of the classes."""
    place = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"data.root: folder '{root}' not found (looked in {Path.cwd()}); "
            "expected ROOT/train/CLASS/images and ROOT/test/CLASS/images"
        )
    test = next((place / name for name in _TEST_NAMES if (place / name).is_dir()), None)
    if test is None or not (place / "train").is_dir():
        raise UserError(
            f"data.root: '{place.absolute()}' lacks train/ or test/ (or val/); expected "
            "ROOT/train/CLASS/images and ROOT/test/CLASS/images"
        )
    names = _classes(place / "train")
    extra = sorted({*_classes(test)} - {*names})
    if extra:
        raise UserError(f"{test} holds classes that train/ does not: {', '.join(extra[:6])}")
    return place / "train", test, names


def _classes(folder: Path) -> tuple[str, ...]:
    hidden = (".", "__")  # what editors and notebooks leave behind
    folders = (p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(hidden))
    names = tuple(sorted(folders))
    for name in names:
        if not _is_text(name):
            raise UserError(f"{folder} has the folder {name!r}, whose name is no UTF-8; rename it")
    return names


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(folder: Path, names: tuple[str, ...], preprocessing: Preprocessing) -> FileImages:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        named = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        files = [p for p in named if not p.is_dir()]
        for path in files:
            require_file(path)
        if not files and folder.name == "train":
            raise UserError(f"{folder / name} holds no images; fill it or remove the folder")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{folder.absolute()} holds no images ({', '.join(sorted(_SUFFIXES))})")
    return FileImages(paths, torch.tensor(labels), preprocessing, folder)

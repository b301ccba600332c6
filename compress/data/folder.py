"""A user's own image folder: `train/CLASS/*.jpg` and `test/CLASS/*.jpg` (or `val`).

Without a test split a share of each class is held out, `CLASS/*.jpg` or `train/CLASS/*.jpg` will
do. Without labels it is any tree of images.
"""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from compress.data.images import FileImages, Preprocessing
from compress.data.source import Source
from compress.errors import UserError
from compress.storage.user_files import require_file

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
_TEST_NAMES = ("test", "val", "valid", "validation")
_EXPECTED = (
    "ROOT/train/CLASS/images and ROOT/test/CLASS/images, or ROOT/CLASS/images, of which a share is "
    "held out for tests"
)


def image_folder(*, root: str, image_size: int | None = None) -> Source:
    """Images below `root`; class names are the folders' names, normalisation is ImageNet's.

    Where there is no folder of test images, a share of each class is to be held out.
    For evaluation the shorter side is resized to 8/7 of `image_size` (default 224), as torchvision
    does for 224 (256); up to 64 pixels to `image_size` itself.
    """
    train, test, names = _find_splits(root)
    preprocessing = _preprocessing(image_size)
    return Source(
        train=_read(train, names, preprocessing, is_train=True),
        test=None if test is None else _read(test, names, preprocessing),
        class_names=names,
        **_fields(preprocessing),
    )


def image_tree(*, root: str, image_size: int | None = None) -> Source:
    """Images below `root` in any folders, prepared as by `image_folder`, without labels.

    Those of `root`/test (or val, valid, validation) are the test split; where there is none, a
    share is to be held out. Where train and test have the same folders and all images in them,
    these are classes: labels to judge by.
    """
    place = _existing(root)
    test = _test_folder(place)
    if test is not None and _has_classes(place / "train", test):
        return image_folder(root=root, image_size=image_size)
    preprocessing = _preprocessing(image_size)
    train = place if test is None else place / "train"
    paths = _images_below(train if train.is_dir() else place)
    held_out = _images_below(test) if test is not None else []
    rest = sorted({*paths} - {*held_out})
    return Source(
        train=_unlabelled(rest, preprocessing, place),
        test=_unlabelled(held_out, preprocessing, place) if test is not None else None,
        class_names=(),
        **_fields(preprocessing),
    )


def tree_classes(*, root: str) -> tuple[str, ...]:
    """No class names: labels of a tree of images are not learned from.

    Raises:
        UserError: the folder is not there.
    """
    _existing(root)
    return ()


def folder_classes(*, root: str) -> tuple[str, ...]:
    """The names of the classes below `root`; no image is looked for.

    Raises:
        UserError: the folders are not as they must be.
    """
    return _find_splits(root)[2]


def _preprocessing(image_size: int | None) -> Preprocessing:
    size = image_size or 224
    resize = size if size <= 64 else round(size * 8 / 7)
    return Preprocessing(size, _IMAGENET_MEAN, _IMAGENET_STD, resize)


def _fields(preprocessing: Preprocessing) -> dict[str, Any]:
    """Fields of `Source` that say how its images are prepared."""
    return {field.name: getattr(preprocessing, field.name) for field in fields(preprocessing)}


def _existing(root: str, expected: str = "a folder of images") -> Path:
    if not os.path.isdir(root):
        raise UserError(
            f"data.root: folder '{root}' not found (looked in {Path.cwd()}); expected {expected}"
        )
    return Path(root)


def _test_folder(place: Path) -> Path | None:
    return next((place / name for name in _TEST_NAMES if (place / name).is_dir()), None)


def _has_classes(train: Path, test: Path) -> bool:
    """Whether both splits have the same folders, two or more, and no image beside them."""
    if not train.is_dir() or len(names := _classes(train)) < 2 or names != _classes(test):
        return False
    return not any(_is_image(path) for folder in (train, test) for path in folder.iterdir())


def _find_splits(root: str) -> tuple[Path, Path | None, tuple[str, ...]]:
    """The folders of both splits, None for one to be held out, and the names of the classes."""
    place = _existing(root, _EXPECTED)
    test, train = _test_folder(place), place / "train"
    if test is None or not train.is_dir():
        if test is not None:
            raise UserError(f"data.root: '{place.absolute()}' lacks train/; expected {_EXPECTED}")
        folder = train if train.is_dir() else place
        names = _classes(folder)
        if len(names) < 2:
            raise UserError(
                f"data.root: '{folder.absolute()}' holds {len(names)} folders of images, which are "
                f"the classes; expected {_EXPECTED}. For images without labels, see "
                "data: {labels: false}"
            )
        return folder, None, names
    names = _classes(train)
    extra = sorted({*_classes(test)} - {*names})
    if extra:
        raise UserError(f"{test} holds classes that train/ does not: {', '.join(extra[:6])}")
    return train, test, names


def _classes(folder: Path) -> tuple[str, ...]:
    folders = (p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
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


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.is_dir()


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # what editors and notebooks leave behind


def _images_below(folder: Path) -> list[Path]:
    """The images of a folder and those below it, but for hidden ones.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if _is_image(path) and not any(map(_is_hidden, path.relative_to(folder).parts))
    )
    for path in paths:
        require_file(path)
    if not paths:
        raise _no_images(folder)
    return paths


def _unlabelled(paths: list[Path], preprocessing: Preprocessing, root: Path) -> FileImages:
    return FileImages(paths, torch.zeros(len(paths), dtype=torch.long), preprocessing, root)


def _no_images(folder: Path) -> UserError:
    return UserError(f"{folder.absolute()} holds no images ({', '.join(sorted(_SUFFIXES))})")


def _read(
    folder: Path, names: tuple[str, ...], preprocessing: Preprocessing, *, is_train: bool = False
) -> FileImages:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(path for path in (folder / name).rglob("*") if _is_image(path))
        for path in files:
            require_file(path)
        if not files and is_train:
            raise UserError(f"{folder / name} holds no images; fill it or remove the folder")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise _no_images(folder)
    return FileImages(paths, torch.tensor(labels), preprocessing, folder)

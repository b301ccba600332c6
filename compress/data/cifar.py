"""CIFAR-100 (Krizhevsky 2009) from the official pickles, which are read without executing them."""

from pathlib import Path

import numpy as np
import torch
import torchvision

from compress.console.messages import log
from compress.data.cifar_pickles import read_pickle
from compress.data.images import MemoryImages
from compress.data.source import Source
from compress.errors import UserError

_FOLDER = "cifar-100-python"
_FILES = ("train", "test", "meta")
_VALUES = 3 * 32 * 32


def cifar100(*, root: str = "data", image_size: int | None = None) -> Source:
    """CIFAR-100 in `root` or `root`/cifar-100-python; downloaded to `root` where it is missing.

    mean and std are those of the CRD and SimKD repositories.
    """
    if image_size not in (None, 32):
        raise UserError(f"data.image_size: CIFAR images have 32 pixels, got {image_size}")
    folder = _find(Path(root))
    names = _names(folder / "meta")
    train, test = _images(folder / "train"), _images(folder / "test")
    highest = int(max(train.labels.max(), test.labels.max()))
    if highest >= len(names):
        raise UserError(f"{folder / 'meta'} names {len(names)} classes, labels go up to {highest}")
    return Source(
        train=train,
        test=test,
        class_names=names,
        image_size=32,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )


def _find(root: Path) -> Path:
    places = (root / _FOLDER, root)
    for place in places:
        if all((place / name).is_file() for name in _FILES):
            return place
    log(f"CIFAR-100 is not in '{root}': downloading it")
    try:
        torchvision.datasets.CIFAR100(str(root), download=True)
    except (OSError, RuntimeError) as error:
        looked = " and ".join(str(p.absolute()) for p in places)
        raise UserError(
            f"data.root: no CIFAR-100 found (looked in {looked} for the files "
            f"{', '.join(_FILES)}), and downloading failed ({error}); put the unpacked "
            f"cifar-100-python folder there, or name its place with --set data.root=FOLDER"
        ) from None
    return root / _FOLDER


def _names(path: Path) -> tuple[str, ...]:
    names_in_file = read_pickle(path).get(b"fine_label_names")
    try:
        names = tuple(n.decode() if isinstance(n, bytes) else n for n in names_in_file or ())
    except (TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CIFAR-100 file: {error}") from None
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is not a CIFAR-100 file: a class name in it is no text")
    return names


def _images(path: Path) -> MemoryImages:
    content = read_pickle(path)
    pixels, labels = content.get(b"data"), content.get(b"fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.size % _VALUES:
        raise UserError(f"{path} is not a CIFAR-100 file: it holds no pixels of 32x32 images")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < 256 for n in labels):
        raise UserError(f"{path} is not a CIFAR-100 file: it holds no list of fine labels")
    pixels = pixels.reshape(-1, 3, 32, 32)
    if not labels or len(labels) != len(pixels):
        raise UserError(f"{path} holds {len(pixels)} images and {len(labels)} labels")
    return MemoryImages(torch.from_numpy(pixels.copy()), torch.tensor(labels))

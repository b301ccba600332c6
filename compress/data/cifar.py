"""CIFAR-100 (Krizhevsky 2009) from the official pickles, which are read without executing them."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from compress.console.messages import log
from compress.data.images import MemoryImages
from compress.data.source import Source
from compress.errors import UserError

_FOLDER = "cifar-100-python"
_FILES = ("train", "test", "meta")
# The only globals in the official archive: numpy's array constructors (names of numpy 1 and 2).
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[bytes, Any]:
    """A CIFAR pickle; anything in it but containers, numbers, text and arrays is refused."""
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # damaged pickles fail in many ways
        raise UserError(f"{path} is not a CIFAR file, or damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR file: it holds a {type(content).__name__}")
    return {k.encode() if isinstance(k, str) else k: v for k, v in content.items()}


def cifar100(*, root: str = "data", image_size: int | None = None) -> Source:
    """CIFAR-100 in `root` or `root`/cifar-100-python; downloaded to `root` where it is missing.

    mean and std are those of the CRD and SimKD repositories.
    """
    if image_size not in (None, 32):
        raise UserError(f"data.image_size: CIFAR images have 32 pixels, got {image_size}")
    folder = _find(Path(root))
    names = read_pickle(folder / "meta").get(b"fine_label_names") or []
    train, test = _images(folder / "train"), _images(folder / "test")
    highest = int(max(train.labels.max(), test.labels.max()))
    if highest >= len(names):
        raise UserError(f"{folder / 'meta'} names {len(names)} classes, labels go up to {highest}")
    return Source(
        train=train,
        test=test,
        class_names=tuple(n.decode() if isinstance(n, bytes) else n for n in names),
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


def _images(path: Path) -> MemoryImages:
    content = read_pickle(path)
    try:
        pixels = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor([int(label) for label in content[b"fine_labels"]])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a CIFAR-100 file: {error}") from None
    if len(labels) != len(pixels):
        raise UserError(f"{path} holds {len(pixels)} images and {len(labels)} labels")
    return MemoryImages(torch.from_numpy(pixels.copy()), labels)

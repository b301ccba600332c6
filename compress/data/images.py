"""Sources of images: in memory as uint8, or in files that are decoded on reading."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from compress.data.image_files import open_image, read_rgb


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the network's input, stated exactly.

    The shorter side is resized to `resize` pixels (bilinear, antialiased; 0: the image already
    has the right size), the centre `image_size` square is cut, values / 255 are normalised per
    channel.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        content = asdict(self)
        return {**content, "mean": list(self.mean), "std": list(self.std), "channels": "RGB"}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`."""
        mean, std = tuple(content["mean"]), tuple(content["std"])
        return cls(content["image_size"], mean, std, content["resize"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, image_size, image_size)."""
        return 3, self.image_size, self.image_size

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 of the same shape."""
        mean, std = _constants(self.mean, self.std, images.device)
        return (images.float() / 255 - mean) / std

    def cut(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, image_size, image_size): resize and centre crop."""
        if self.resize:
            image = F.resize(image, [self.resize], antialias=True)
        square: Tensor = F.center_crop(image, [self.image_size, self.image_size])
        return square


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    # Made once per device: a new tensor in every step would make the step wait for it.
    first, second = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return first, second


def evenly(images: "Images", count: int) -> Tensor:
    """Indices of up to `count` images from all over a split, whose first may be of one class."""
    count = min(count, len(images))
    return torch.linspace(0, len(images) - 1, count).round().long()


def some_sizes(images: "FileImages", count: int) -> list[tuple[int, int]]:
    """Width and height of up to `count` files from all over a split, as stored.

    Raises:
        UserError: one is no readable image.
    """
    sizes = []
    for i in evenly(images, count).tolist():
        with open_image(images.paths[i]) as image:
            sizes.append(image.size)
    return sizes


def split_labels(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """RGB (N, 3, H, W), and the labels: (N,) as given, or (N, H, W) of pixels that have classes.

    Args:
        pixels: uint8 (N, 3, H, W), or (N, 4, H, W) with the class of each pixel, 255 where void.
    """
    if pixels.shape[1] == 3:
        return pixels, labels
    return pixels[:, :3], pixels[:, 3].long()


class Images(Protocol):
    """Labelled images.

    Those with a class for every pixel have it as a fourth channel, see `split_labels`. Where
    training must not see the labels, `labels` are zeros and `hidden_labels` the true ones, by
    which a network may be judged that is trained; None where there are no such labels.
    """

    labels: Tensor
    hidden_labels: Tensor | None

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor) -> Tensor:
        """uint8 (N, 3, S, S), as evaluation sees them; with classes of pixels (N, 4, H, W)."""
        ...

    def fetch_square(self, indices: Tensor, size: int) -> Tensor:
        """uint8 (N, C, size, size): where evaluation sees whole images, their centre."""
        ...

    def in_batches(self, most: int) -> Sequence[Tensor]:
        """Indices of all images in their order, up to `most` together that can be one batch."""
        ...

    def fetch_original(self, index: int) -> Tensor:
        """uint8 (3, H, W) before any resizing."""
        ...

    def subset(self, indices: Tensor) -> "Images":
        """Only these images, in this order."""
        ...

    def without_labels(self) -> "Images":
        """The same images with their labels hidden: one class, numbered 0."""
        ...

    def to(self, device: torch.device) -> "Images":
        """Pixels that are in memory on that device; files stay where they are."""
        ...

    def digest(self) -> str:
        """Identifies content and order."""
        ...

    def version(self) -> str:
        """`digest`, and where the content is in files, these very files as they are now."""
        ...


class _SquareImages:
    """Images that evaluation sees as squares of one size: any of them can be one batch."""

    labels: Tensor
    hidden_labels: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor) -> Tensor:
        """See `Images`."""
        raise NotImplementedError

    def fetch_square(self, indices: Tensor, size: int) -> Tensor:
        """See `Images`."""
        return self.fetch(indices)

    def in_batches(self, most: int) -> Sequence[Tensor]:
        """See `Images`."""
        return torch.split(torch.arange(len(self)), most)

    def _hidden_of(self, indices: Tensor) -> Tensor | None:
        return None if self.hidden_labels is None else self.hidden_labels[indices]


class MemoryImages(_SquareImages):
    """Images of one size as a uint8 tensor (N, 3, S, S), on any device."""

    def __init__(self, pixels: Tensor, labels: Tensor, hidden_labels: Tensor | None = None) -> None:
        self.pixels = pixels
        self.labels = labels
        self.hidden_labels = hidden_labels

    def fetch(self, indices: Tensor) -> Tensor:
        """See `Images`."""
        return self.pixels[indices]

    def fetch_original(self, index: int) -> Tensor:
        """See `Images`."""
        return self.pixels[index]

    def subset(self, indices: Tensor) -> "MemoryImages":
        """See `Images`."""
        hidden = self._hidden_of(indices)
        return MemoryImages(self.pixels[indices], self.labels[indices], hidden)

    def without_labels(self) -> "MemoryImages":
        """See `Images`."""
        return MemoryImages(self.pixels, torch.zeros_like(self.labels), self.labels)

    def to(self, device: torch.device) -> "MemoryImages":
        """See `Images`."""
        labels = self.labels.to(device)
        return MemoryImages(self.pixels.to(device), labels, self.hidden_labels)

    def digest(self) -> str:
        """See `Images`."""
        digest = hashlib.sha256(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def version(self) -> str:
        """See `Images`."""
        return self.digest()


class FileImages(_SquareImages):
    """Image files, decoded on reading."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        preprocessing: Preprocessing,
        root: Path,
        hidden_labels: Tensor | None = None,
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.hidden_labels = hidden_labels
        self.preprocessing = preprocessing
        self.root = root

    def fetch(self, indices: Tensor) -> Tensor:
        """See `Images`."""
        cut = self.preprocessing.cut
        return torch.stack([cut(self.fetch_original(int(i))) for i in indices])

    def fetch_original(self, index: int) -> Tensor:
        """See `Images`."""
        return read_rgb(self.paths[index], upright=False)

    def subset(self, indices: Tensor) -> "FileImages":
        """See `Images`."""
        paths = [self.paths[int(i)] for i in indices]
        hidden = self._hidden_of(indices)
        return FileImages(paths, self.labels[indices], self.preprocessing, self.root, hidden)

    def without_labels(self) -> "FileImages":
        """See `Images`."""
        zeros = torch.zeros_like(self.labels)
        return FileImages(self.paths, zeros, self.preprocessing, self.root, self.labels)

    def to(self, device: torch.device) -> "FileImages":
        """See `Images`."""
        return self

    def digest(self) -> str:
        """Names and sizes stand for the content: reading every file would take minutes."""
        return _digest_of(f"{p.relative_to(self.root)} {p.stat().st_size}" for p in self.paths)

    def version(self) -> str:
        """See `Images`."""
        stats = ((p.resolve(), p.stat()) for p in self.paths)
        return _digest_of(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)


def _digest_of(lines: Iterable[str]) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]

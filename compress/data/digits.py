"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship inside the package.

The UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin & Kaynak 1998). A fixed,
class-balanced split sets 300 digits aside for testing and 300 more for the scenes of the transfer
tasks, which no network sees while it is distilled.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from compress.data.images import MemoryImages
from compress.data.source import Source, choose_balanced
from compress.seeding import generator

_HELD_OUT = 300


def digits(*, image_size: int | None = None) -> Source:
    """Digits as RGB squares of `image_size` pixels (default 16, bilinear from 8)."""
    pixels, labels, train, test, _ = _split()
    size = image_size or 16
    scaled = interpolate(pixels[:, None].float(), size=(size, size), mode="bilinear")
    rgb = scaled.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return Source(
        train=MemoryImages(rgb[train], labels[train]),
        test=MemoryImages(rgb[test], labels[test]),
        class_names=tuple(map(str, range(10))),
        image_size=size,
        mean=(0.305,) * 3,  # of the training images, measured
        std=(0.319,) * 3,
    )


def held_out_scenes_digits() -> tuple[Tensor, Tensor]:
    """The 300 digits that only scenes are made of: uint8 (300, 8, 8) and labels (300,)."""
    pixels, labels, _, _, scenes = _split()
    return pixels[scenes], labels[scenes]


def _split() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    raw = load_digits()
    # Values are 0..16.
    pixels = (torch.from_numpy(raw.images) * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    rest = torch.arange(len(labels))
    parts = []
    for part in ("test", "scenes"):
        chosen = choose_balanced(labels[rest], _HELD_OUT, generator(0, "digits", part))
        parts.append(rest[chosen])
        keep = torch.ones(len(rest), dtype=torch.bool)
        keep[chosen] = False
        rest = rest[keep]
    return pixels, labels, rest, parts[0], parts[1]

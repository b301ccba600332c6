"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship inside the package.

The UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin & Kaynak 1998). A fixed,
class-balanced split sets 300 digits aside for testing and 300 more for the scenes of the transfer
tasks, which no network sees while it is distilled.

`digit_pairs` makes a harder task of them: numbers from 00 to 99, two digits that lie anywhere in
their half of the image and may overlap (after MultiMNIST; Sabour et al., NeurIPS 2017).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from compress.data.images import MemoryImages
from compress.data.source import Source, choose_balanced
from compress.seeding import generator

DIGIT_PAIRS = tuple(f"{number:02d}" for number in range(100))

_HELD_OUT = 300
_PAIRS_OF_EACH_CLASS = {"train": 30, "test": 10}


def digits(*, image_size: int | None = None) -> Source:
    """Digits as RGB squares of `image_size` pixels (default 16, bilinear from 8)."""
    pixels, labels, train, test, _ = _split()
    size = image_size or 16
    rgb = _resized(pixels, size)
    return Source(
        train=MemoryImages(rgb[train], labels[train]),
        test=MemoryImages(rgb[test], labels[test]),
        class_names=tuple(map(str, range(10))),
        image_size=size,
        mean=(0.305,) * 3,  # of the training images, measured
        std=(0.319,) * 3,
    )


def digit_pairs(*, image_size: int | None = None) -> Source:
    """Numbers from 00 to 99 as RGB squares of `image_size` pixels (default 16).

    3,000 images to train from the digits that `digits` trains on, 1,000 to test from those that it
    tests on, the same number of each class; where and of which digits is drawn once and for all.
    """
    pixels, labels, train, test, _ = _split()
    size = image_size or 16
    splits = []
    for name, members in (("train", train), ("test", test)):
        drawn, numbers = _pairs(pixels[members], labels[members], name)
        splits.append(MemoryImages(_resized(drawn, size), numbers))
    return Source(
        train=splits[0],
        test=splits[1],
        class_names=DIGIT_PAIRS,
        image_size=size,
        mean=(0.150,) * 3,  # of the training images, measured
        std=(0.306,) * 3,
    )


def _pairs(pixels: Tensor, labels: Tensor, split: str) -> tuple[Tensor, Tensor]:
    """uint8 (N, 16, 16) and the number of each, (N,), made of digits (M, 8, 8) and their labels."""
    draws = generator(0, "digit_pairs", split)
    numbers = torch.arange(100).repeat(_PAIRS_OF_EACH_CLASS[split])
    canvas = torch.zeros(len(numbers), 16, 16, dtype=torch.uint8)
    for digit_of_each, first_column in ((numbers // 10, 0), (numbers % 10, 5)):
        rows = torch.randint(9, (len(numbers),), generator=draws).tolist()
        columns = torch.randint(4, (len(numbers),), generator=draws).add(first_column).tolist()
        for image, digit, row, column in zip(canvas, digit_of_each, rows, columns, strict=True):
            members = (labels == digit).nonzero().flatten()
            chosen = members[torch.randint(len(members), (), generator=draws)]
            place = image[row : row + 8, column : column + 8]
            torch.maximum(place, pixels[chosen], out=place)
    return canvas, numbers


def _resized(pixels: Tensor, size: int) -> Tensor:
    """Gray uint8 (N, H, W) as RGB uint8 (N, 3, size, size), bilinear."""
    scaled = interpolate(pixels[:, None].float(), size=(size, size), mode="bilinear")
    return scaled.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def held_out_scenes_digits() -> tuple[Tensor, Tensor]:
    """The 300 digits that only scenes are made of: uint8 (300, 8, 8) and labels (300,)."""
    pixels, labels, _, _, scenes = _split()
    return pixels[scenes], labels[scenes]


def scene_pools(split: str, classes: int) -> list[Tensor]:
    """The digits of `train` or `test`, by class: (n, 8, 8) in 0..1, see `compress.data.scenes`."""
    pixels, labels, train, test, _ = _split()
    members = {"train": train, "test": test}[split]
    chosen = pixels[members].float() / pixels.max()
    return [chosen[labels[members] == digit] for digit in range(classes)]


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

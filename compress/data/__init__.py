"""Data sets by name, with what a recipe may say of any of them: classes, subsets, validation.

>>> data = open_data({"name": "digits", "classes": 3, "train_images": 30, "image_size": 8})
>>> len(data.train), data.class_names, data.preprocessing.input_shape
(30, ('0', '1', '2'), (3, 8, 8))
>>> batches = ImageBatches(
...     data.train, data.preprocessing, batch_size=10, augment=["crop_flip"], seed=0,
...     device=torch.device("cpu"),
... )
>>> batch = next(batches.epoch(0))
>>> batch.images[0].shape, batch.labels.shape
(torch.Size([10, 3, 8, 8]), torch.Size([10]))
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from compress.data.batch import Batch
from compress.data.batches import ImageBatches, evaluation_batches
from compress.data.cifar import cifar100
from compress.data.conversion import Conversion, conversion
from compress.data.digits import DIGIT_PAIRS, digit_pairs, digits
from compress.data.folder import folder_classes, image_folder
from compress.data.images import FileImages, Images, MemoryImages, Preprocessing, evenly
from compress.data.source import (
    Source,
    balanced_subset,
    choose_balanced,
    first_classes,
    random_share,
)
from compress.errors import UserError
from compress.seeding import generator

__all__ = [
    "CLASS_NAMES",
    "DATASETS",
    "IMAGE_SIZES",
    "Batch",
    "Conversion",
    "Dataset",
    "FileImages",
    "ImageBatches",
    "Images",
    "MemoryImages",
    "Preprocessing",
    "conversion",
    "evaluation_batches",
    "evenly",
    "open_data",
]

# The keyword-only arguments of each function are its arguments in a recipe.
DATASETS: Mapping[str, Callable[..., Source]] = {
    "cifar100": cifar100,
    "digit_pairs": digit_pairs,
    "digits": digits,
    "image_folder": image_folder,
}

# The names of a data set's classes before it is opened (numbers where names are not known yet).
# Each takes some of the arguments of the data set, and raises UserError where its folder is wrong.
CLASS_NAMES: Mapping[str, Callable[..., tuple[str, ...]]] = {
    "cifar100": lambda: tuple(map(str, range(100))),
    "digit_pairs": lambda: DIGIT_PAIRS,
    "digits": lambda: tuple(map(str, range(10))),
    "image_folder": folder_classes,
}

# The size of a data set's images where a recipe does not say.
IMAGE_SIZES: Mapping[str, int] = {
    "cifar100": 32,
    "digit_pairs": 16,
    "digits": 16,
    "image_folder": 224,
}

_COMMON = (
    "classes",
    "train_images",
    "train_share",
    "test_images",
    "validation",
    "augment",
    "views",
    "seed",
)


@dataclass(frozen=True)
class Dataset:
    """A data set as a recipe's `data` describes it."""

    train: Images
    validation: Images | None
    test: Images
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    augment: str

    def to(self, device: torch.device) -> "Dataset":
        """The data set with what is in memory on that device."""
        validation = self.validation.to(device) if self.validation else None
        return replace(
            self, train=self.train.to(device), validation=validation, test=self.test.to(device)
        )

    def digest(self) -> str:
        """Identifies every image that training or testing reads, in order."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = [self.train, self.test, *([self.validation] if self.validation else [])]
        text = " ".join(part.digest() for part in parts) + repr(self.class_names)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_data(spec: Mapping[str, Any], *, seed: int = 0) -> Dataset:
    """Open the data set that a recipe's `data` section describes.

    Args:
        spec: `name`, that data set's own arguments, and any of `classes` (the first so many),
            `train_images`, `test_images` (class-balanced subsets), `train_share` (a share of the
            training split, drawn at random), `validation` (images taken from what is left of the
            training split, class-balanced), `augment`, `seed`.
        seed: decides which images a subset holds, unless the spec has a seed.

    Raises:
        UserError: the data are missing, or fewer than the spec wants.
    """
    common = {key: spec.get(key) for key in _COMMON}
    own = {k: v for k, v in spec.items() if k not in _COMMON and k != "name" and v is not None}
    source = DATASETS[spec["name"]](**own)
    seed = seed if common["seed"] is None else common["seed"]
    train, test, names = source.train, source.test, source.class_names
    if common["classes"] is not None:
        train, test, names = first_classes(train, test, names, common["classes"])
    train = balanced_subset(train, common["train_images"], generator(seed, "train_images"), "train")
    train = random_share(train, common["train_share"], generator(seed, "train_share"))
    test = balanced_subset(test, common["test_images"], generator(seed, "test_images"), "test")
    train, validation = _split_validation(train, common["validation"], seed)
    preprocessing = Preprocessing(source.image_size, source.mean, source.std, source.resize)
    return Dataset(train, validation, test, names, preprocessing, common["augment"] or "crop_flip")


def _split_validation(train: Images, count: int | None, seed: int) -> tuple[Images, Images | None]:
    """The images that are left for training, and `count` others for validation."""
    if not count:
        return train, None
    if count >= len(train):
        raise UserError(f"data.validation: asks for {count} of {len(train)} training images")
    chosen = choose_balanced(train.labels, count, generator(seed, "validation"))
    keep = torch.ones(len(train), dtype=torch.bool)
    keep[chosen] = False
    return train.subset(keep.nonzero().flatten()), train.subset(chosen)

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
from compress.data.dense.images import MaskedImages
from compress.data.dense.sources import CROPS, DENSE_CLASS_NAMES, DENSE_DATASETS
from compress.data.digits import DIGIT_PAIRS, digit_pairs, digits
from compress.data.folder import folder_classes, image_folder, image_tree, tree_classes
from compress.data.images import (
    FileImages,
    Images,
    MemoryImages,
    Preprocessing,
    evenly,
    some_sizes,
    split_labels,
)
from compress.data.source import (
    Source,
    balanced_subset,
    first_classes,
    hold_out,
    random_share,
    split_off,
)
from compress.errors import UserError
from compress.seeding import generator

__all__ = [
    "CLASS_NAMES",
    "DATASETS",
    "DENSE_DATASETS",
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
    "look_at_classes",
    "open_data",
    "some_sizes",
    "split_labels",
]

# The keyword-only arguments of each function are its arguments in a recipe.
DATASETS: Mapping[str, Callable[..., Source]] = {
    **DENSE_DATASETS,
    "cifar100": cifar100,
    "digit_pairs": digit_pairs,
    "digits": digits,
    "image_folder": image_folder,
}

# What is read in place of these where there are no labels; others are read, their labels hidden.
UNLABELLED: Mapping[str, Callable[..., Source]] = {"image_folder": image_tree}

# The names of a data set's classes before it is opened (numbers where names are not known yet).
# Each takes some of the arguments of the data set, and raises UserError where its folder is wrong.
CLASS_NAMES: Mapping[str, Callable[..., tuple[str, ...]]] = {
    **DENSE_CLASS_NAMES,
    "cifar100": lambda: tuple(map(str, range(100))),
    "digit_pairs": lambda: DIGIT_PAIRS,
    "digits": lambda: tuple(map(str, range(10))),
    "image_folder": folder_classes,
}
UNLABELLED_CLASS_NAMES: Mapping[str, Callable[..., tuple[str, ...]]] = {
    "image_folder": tree_classes,
}
# Of a data set without a test split: a share of all images, or of each class.
_HELD_OUT_SHARE, _HELD_OUT_OF_CLASS = 0.1, 0.2

# The size of a data set's images where a recipe does not say.
IMAGE_SIZES: Mapping[str, int] = {
    **CROPS,
    "cifar100": 32,
    "digit_pairs": 16,
    "digits": 16,
    "image_folder": 224,
}

_COMMON = (
    "labels",
    "classes",
    "train_images",
    "train_share",
    "test_images",
    "validation",
    "augment",
    "views",
    "seed",
    "scales",
    "flip",
    "window",
)


@dataclass(frozen=True)
class Dataset:
    """A data set as a recipe's `data` describes it.

    Without labels it has no class names, and its images are as `Images.without_labels` says.
    """

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
            training split, class-balanced), `augment`, `seed`, `scales` and `flip` (of training
            views of images with masks; see `MaskedImages`), `labels` (False: there are none, or
            they are hidden, and every subset is drawn at random).
        seed: decides which images a subset holds, unless the spec has a seed.

    Raises:
        UserError: the data are missing, or fewer than the spec wants.
    """
    common = {key: spec.get(key) for key in _COMMON}
    own = {k: v for k, v in spec.items() if k not in _COMMON and k != "name" and v is not None}
    seed = seed if common["seed"] is None else common["seed"]
    has_labels = common["labels"] is not False
    source = _reader(spec["name"], has_labels)(**own)
    train, test, names = source.train, source.test, source.class_names
    if test is None and names:
        train, test = hold_out(train, _HELD_OUT_OF_CLASS, names, generator(seed, "test_images"))
    elif test is None:
        held_out = common["test_images"] or max(1, round(_HELD_OUT_SHARE * len(train)))
        train, test = _split(train, held_out, seed, "test_images")
    if not has_labels:
        if names:
            train, test, names = train.without_labels(), test.without_labels(), ()
    elif common["classes"] is not None:
        train, test, names = first_classes(train, test, names, common["classes"])
    train = balanced_subset(train, common["train_images"], generator(seed, "train_images"), "train")
    train = random_share(train, common["train_share"], generator(seed, "train_share"))
    test = balanced_subset(test, common["test_images"], generator(seed, "test_images"), "test")
    validation: Images | None = None
    if common["validation"]:
        train, validation = _split(train, common["validation"], seed, "validation")
    if isinstance(train, MaskedImages):
        train = train.with_views(common["scales"], flip=common["flip"] is not False)
    preprocessing = Preprocessing(source.image_size, source.mean, source.std, source.resize)
    return Dataset(train, validation, test, names, preprocessing, common["augment"] or "crop_flip")


def look_at_classes(name: str, *, labels: bool) -> Callable[..., tuple[str, ...]]:
    """What gives a data set's class names before it is opened, see `CLASS_NAMES`."""
    usual = CLASS_NAMES[name]
    return usual if labels else UNLABELLED_CLASS_NAMES.get(name, usual)


def _reader(name: str, labels: bool) -> Callable[..., Source]:
    return DATASETS[name] if labels else UNLABELLED.get(name, DATASETS[name])


def _split(train: Images, count: int, seed: int, key: str) -> tuple[Images, Images]:
    """The images that are left for training, and `count` others for what `key` says."""
    if count >= len(train):
        raise UserError(f"data.{key}: asks for {count} of {len(train)} training images")
    return split_off(train, count, generator(seed, key))

"""The result of a data set's function, and a class-balanced choice from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.images import Images
from compress.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data set as it stands, before classes, subsets and validation are cut from it.

    `test` None: a share of `train` is to be held out, of each class where there are some. Without
    class names the images have no labels: all are 0.
    """

    train: Images
    test: Images | None
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int = 0


def choose_balanced(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices, the same number of each class (one more of the first where it is uneven).

    Sorted, so that the choice alone depends on the generator.

    Raises:
        UserError: a class has fewer.
    """
    classes = torch.unique(labels).tolist()
    share, extra = divmod(count, len(classes))
    chosen = []
    for position, label in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        wanted = share + (position < extra)
        if wanted > len(members):
            raise UserError(
                f"class number {label} has {len(members)} images, {wanted} of each class are "
                f"needed ({count} of {len(classes)} classes); ask for fewer"
            )
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen.append(shuffled[:wanted])
    return torch.cat(chosen).sort().values


def split_off(images: Images, count: int, generator: torch.Generator) -> tuple[Images, Images]:
    """The images that are left, and `count` others, the same number of each class.

    Raises:
        UserError: a class has fewer.
    """
    return _without(images, choose_balanced(images.labels, count, generator))


def _without(images: Images, chosen: Tensor) -> tuple[Images, Images]:
    """The other images, and those at the sorted indices `chosen`."""
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[chosen] = False
    return images.subset(keep.nonzero().flatten()), images.subset(chosen)


def hold_out(
    images: Images, share: float, names: Sequence[str], generator: torch.Generator
) -> tuple[Images, Images]:
    """The images that are left, and a share of each class, rounded, at least one image.

    Raises:
        UserError: a class has a single image.
    """
    chosen = []
    for label, name in enumerate(names):
        members = (images.labels == label).nonzero().flatten()
        if len(members) < 2:
            raise UserError(
                f"data: class '{name}' has {len(members)} image; 2 are needed at least, one to "
                "learn from and one to test with"
            )
        count = max(1, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return _without(images, torch.cat(chosen).sort().values)


def first_classes(
    train: Images, test: Images, names: tuple[str, ...], count: int
) -> tuple[Images, Images, tuple[str, ...]]:
    """Both splits and the class names, cut to the first `count` classes.

    Raises:
        UserError: there are fewer.
    """
    if count > len(names):
        raise UserError(f"data.classes: asks for {count}, the data set has {len(names)}")
    keep = [(split.labels < count).nonzero().flatten() for split in (train, test)]
    return train.subset(keep[0]), test.subset(keep[1]), names[:count]


def balanced_subset(
    images: Images, count: int | None, generator: torch.Generator, split: str
) -> Images:
    """`count` images of a split, the same number of each class; None: all of them.

    Raises:
        UserError: there are fewer.
    """
    if count is None:
        return images
    if count > len(images):
        raise UserError(f"data.{split}_images: asks for {count}, there are {len(images)}")
    return images.subset(choose_balanced(images.labels, count, generator))


def random_share(images: Images, share: float | None, generator: torch.Generator) -> Images:
    """A share of the training images, rounded, drawn at random whatever their classes; None: all.

    Raises:
        UserError: of a class no image is left.
    """
    if share is None:
        return images
    count = round(share * len(images))
    kept = images.subset(torch.randperm(len(images), generator=generator)[:count].sort().values)
    lost = len(torch.unique(images.labels)) - len(torch.unique(kept.labels))
    if lost:
        raise UserError(
            f"data.train_share: {share:g} of {len(images)} training images leaves none of {lost} "
            "classes; give a larger one"
        )
    return kept

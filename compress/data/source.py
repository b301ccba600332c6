"""The result of a data set's function, and a class-balanced choice from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.images import Images
from compress.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data set as it stands, before classes, subsets and validation are cut from it."""

    train: Images
    test: Images
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

"""What a data set's function returns, and class-balanced choice from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.images import Images


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


def balanced(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices, the same number of each class (one more of the first where it is uneven).

    Sorted, so that the choice alone depends on the generator.
    """
    classes = torch.unique(labels).tolist()
    share, extra = divmod(count, len(classes))
    chosen = []
    for position, label in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen.append(shuffled[: share + (position < extra)])
    return torch.cat(chosen).sort().values

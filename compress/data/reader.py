"""The images of a step and their augmentation: a pure function of (seed, epoch, index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from compress.data.augment import AUGMENTATIONS, ImageView
from compress.data.images import Images
from compress.distributed.collectives import rows_of_part
from compress.seeding import generator


@dataclass(frozen=True)
class Reader:
    """The images of a step and their augmentation; small, so that a worker process can hold it.

    With `views` K an image has K views in all, drawn by `views_seed`. Of each step's images this
    reads the part of process `rank` of `world`.
    """

    images: Images
    image_size: int
    batch_size: int
    augment: tuple[ImageView, ...]
    seed: int
    views: int | None = None
    views_seed: int = 0
    rank: int = 0
    world: int = 1

    def plan(self, epoch: int) -> "EpochPlan":
        """The order of an epoch's images, and the views of each; on the CPU."""
        count = len(self.images)
        order = torch.randperm(count, generator=generator(self.seed, "order", epoch))
        view_numbers: list[Tensor] = []
        ids: list[Tensor] = []
        for number, view in enumerate(self.augment):
            draw = generator(self.seed, "augment", number, epoch)
            if self.views is None:
                view_numbers.append(view.draw(count, ids, draw))
                ids.append(view_numbers[-1])
            else:
                chosen = _chosen_views(view.augment, count, self.views, self.views_seed)
                view_numbers.append(torch.randint(self.views, (count,), generator=draw))
                ids.append(chosen.gather(1, view_numbers[-1][:, None])[:, 0])
        return EpochPlan(order, tuple(ids), tuple(view_numbers))

    def read(self, index: Tensor, ids: Sequence[Tensor]) -> list[Tensor]:
        """The views of some images: per view, uint8 (N, 3, S, S)."""
        made = []
        for view, view_ids in zip(self.augment, ids, strict=True):
            apply = AUGMENTATIONS[view.augment].apply
            made.append(view.turn(apply(self.images, index, view_ids[index], self.image_size)))
        return made

    def rows(self, step: int) -> tuple[int, int, int]:
        """Of a step's images this process's part: first, one after its last, and all of them."""
        before = step * self.batch_size
        count = min(self.batch_size, len(self.images) - before)
        own = rows_of_part(count, self.rank, self.world)
        return own.start, own.stop, count

    def step(self, order: Tensor, step: int) -> Tensor:
        """The images of this process's part of one step."""
        first, end, _ = self.rows(step)
        return order[step * self.batch_size + first : step * self.batch_size + end]


@dataclass(frozen=True)
class EpochPlan:
    """An epoch: the order of its images and, per view, each image's view id and view number."""

    order: Tensor
    view_ids: tuple[Tensor, ...]
    view_numbers: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "EpochPlan":
        """The plan on a device."""
        ids, view_numbers = (
            tuple(t.to(device) for t in v) for v in (self.view_ids, self.view_numbers)
        )
        return EpochPlan(self.order.to(device), ids, view_numbers)


@lru_cache(maxsize=4)
def _chosen_views(name: str, count: int, views: int, seed: int) -> Tensor:
    """The view ids (count, views) that each image has; distinct where there are few in all."""
    draw, available = generator(seed, "views"), AUGMENTATIONS[name].views
    if available > 2**10:  # so many that two of an image are hardly ever the same
        return torch.randint(available, (count, views), generator=draw)
    return torch.rand(count, available, generator=draw).topk(views).indices

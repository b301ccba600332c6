"""Batches whose order and augmentation are a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.data.augment import AUGMENTATIONS
from compress.data.images import Images, MemoryImages, Preprocessing
from compress.randomness import generator


@dataclass(frozen=True)
class Batch:
    """One training step's input.

    images: per view, normalised float32 (N, 3, S, S); view_ids: per view, the integer (N,) that
    identifies each image's augmentation; labels (N,); index (N,) of each image in the training
    set; epoch and step, counted from 0.
    """

    images: tuple[Tensor, ...]
    view_ids: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    epoch: int
    step: int


class ImageBatches:
    """Shuffled, augmented batches; a last batch of a single image is left out (batch norm)."""

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augment: Sequence[str],
        seed: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        """One augmentation name per view. `workers` decode files beside the training step."""
        self.images = images
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.augment = tuple(augment)
        self.seed = seed
        self.device = device
        full, rest = divmod(len(images), batch_size)
        self._steps = full + (rest > 1)
        self._loader: DataLoader[list[Tensor]] | None = None
        self._sampler: list[tuple[int, int]] = []
        if not isinstance(images, MemoryImages):
            self._loader = DataLoader(
                _Steps(self),
                batch_size=None,
                sampler=self._sampler,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
                # Keeps the loader from drawing its base seed from the global generator.
                generator=torch.Generator().manual_seed(0),
            )

    def __len__(self) -> int:
        return self._steps

    def plan(self, epoch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The order of an epoch's images and, per view, each image's view id."""
        order = torch.randperm(len(self.images), generator=generator(self.seed, "order", epoch))
        ids = tuple(
            AUGMENTATIONS[name].draw(len(self.images), generator(self.seed, "augment", view, epoch))
            for view, name in enumerate(self.augment)
        )
        return order, ids

    def read(self, index: Tensor, ids: Sequence[Tensor]) -> list[Tensor]:
        """The views of some images: per view, uint8 (N, 3, S, S)."""
        return [
            AUGMENTATIONS[name].apply(self.images, index, view_ids[index])
            for name, view_ids in zip(self.augment, ids, strict=True)
        ]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order, ids = self.plan(epoch)
        for step, views in enumerate(self._pixels(epoch, order, ids)):
            index = order[self._slice(step)]
            yield Batch(
                images=tuple(
                    self.preprocessing.normalise(v.to(self.device, non_blocking=True))
                    for v in views
                ),
                view_ids=tuple(v[index].to(self.device) for v in ids),
                labels=self.images.labels[index].to(self.device),
                index=index.to(self.device),
                epoch=epoch,
                step=step,
            )

    def _pixels(self, epoch: int, order: Tensor, ids: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        if self._loader is None:
            return (self.read(order[self._slice(step)], ids) for step in range(len(self)))
        self._sampler[:] = [(epoch, step) for step in range(len(self))]
        return iter(self._loader)

    def _slice(self, step: int) -> slice:
        return slice(step * self.batch_size, (step + 1) * self.batch_size)


class _Steps(Dataset[list[Tensor]]):
    """Whole steps as items, so that workers decode a batch each."""

    def __init__(self, batches: ImageBatches) -> None:
        self.batches = batches
        self._epoch = -1
        self._plan: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def __getitem__(self, item: tuple[int, int]) -> list[Tensor]:
        epoch, step = item
        if self._plan is None or epoch != self._epoch:
            self._epoch, self._plan = epoch, self.batches.plan(epoch)
        order, ids = self._plan
        return self.batches.read(order[self.batches._slice(step)], ids)


def evaluation_batches(
    images: Images, batch_size: int, preprocessing: Preprocessing, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order: normalised (N, 3, S, S) and labels (N,)."""
    for index in torch.split(torch.arange(len(images)), batch_size):
        pixels = images.fetch(index).to(device)
        yield preprocessing.normalise(pixels), images.labels[index].to(device)

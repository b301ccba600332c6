"""Batches whose order and augmentation are a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.data.augment import AUGMENTATIONS
from compress.data.images import Images, MemoryImages, Preprocessing
from compress.errors import UserError
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


@dataclass(frozen=True)
class Reader:
    """Which images a step reads and how they look; small, so that a worker process can hold it."""

    images: Images
    image_size: int
    batch_size: int
    augment: tuple[str, ...]
    seed: int

    def plan(self, epoch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The order of an epoch's images and, per view, each image's view id; on the CPU."""
        count = len(self.images)
        order = torch.randperm(count, generator=generator(self.seed, "order", epoch))
        draws = [generator(self.seed, "augment", v, epoch) for v in range(len(self.augment))]
        names = zip(self.augment, draws, strict=True)
        return order, tuple(AUGMENTATIONS[name].draw(count, draw) for name, draw in names)

    def read(self, index: Tensor, ids: Sequence[Tensor]) -> list[Tensor]:
        """The views of some images: per view, uint8 (N, 3, S, S)."""
        return [
            AUGMENTATIONS[name].apply(self.images, index, view_ids[index], self.image_size)
            for name, view_ids in zip(self.augment, ids, strict=True)
        ]

    def step(self, order: Tensor, step: int) -> Tensor:
        """The images of one step."""
        return order[step * self.batch_size : (step + 1) * self.batch_size]


class ImageBatches:
    """Shuffled, augmented batches; a last batch of a single image is left out (batch norm).

    Images in memory stay on `device` and nothing in a step waits for it.
    """

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
        images = images.to(device)
        self.preprocessing = preprocessing
        self.device = device
        self.reader = Reader(images, preprocessing.image_size, batch_size, tuple(augment), seed)
        self._labels = images.labels.to(device)
        full, rest = divmod(len(images), batch_size)
        self._steps = full + (rest > 1)
        if not self._steps:
            raise UserError(f"{len(images)} training images are too few to learn from")
        self._files: _FileSteps | None = None
        if not isinstance(images, MemoryImages):
            self._files = _FileSteps(self.reader, workers, device)

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order, ids = self.reader.plan(epoch)
        order, ids = order.to(self.device), tuple(v.to(self.device) for v in ids)
        for step, views in enumerate(self._pixels(epoch, order, ids)):
            index = self.reader.step(order, step)
            moved = (v.to(self.device, non_blocking=True) for v in views)
            yield Batch(
                images=tuple(self.preprocessing.normalise(v) for v in moved),
                view_ids=tuple(v[index] for v in ids),
                labels=self._labels[index],
                index=index,
                epoch=epoch,
                step=step,
            )

    def _pixels(self, epoch: int, order: Tensor, ids: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        if self._files is not None:
            return self._files.epoch(epoch, len(self))
        reader = self.reader
        return (reader.read(reader.step(order, step), ids) for step in range(len(self)))


class _FileSteps:
    """Whole steps decoded by worker processes that live as long as the training."""

    def __init__(self, reader: Reader, workers: int, device: torch.device) -> None:
        self._order: list[tuple[int, int]] = []
        self._loader = DataLoader(
            _Steps(reader),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Keeps the loader from drawing its base seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def epoch(self, epoch: int, steps: int) -> Iterator[list[Tensor]]:
        """The pixels of each step of an epoch."""
        self._order[:] = [(epoch, step) for step in range(steps)]
        return _unwrapped(self._loader)


class _Steps(Dataset["list[Tensor] | str"]):
    """A step's pixels; a user's mistake as its message, which a worker cannot raise in words."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._epoch = -1
        self._plan: tuple[Tensor, tuple[Tensor, ...]] = torch.empty(0), ()

    def __getitem__(self, item: tuple[int, int]) -> list[Tensor] | str:
        epoch, step = item
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self.reader.plan(epoch)
        order, ids = self._plan
        try:
            return self.reader.read(self.reader.step(order, step), ids)
        except UserError as error:
            return str(error)


class _Chunks(Dataset["list[Tensor] | str"]):
    """Images in order, a batch at a time."""

    def __init__(self, images: Images, batch_size: int) -> None:
        self.images = images
        self.chunks = torch.split(torch.arange(len(images)), batch_size)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> list[Tensor] | str:
        try:
            return [self.images.fetch(self.chunks[item])]
        except UserError as error:
            return str(error)


def _unwrapped(loader: "DataLoader[list[Tensor] | str]") -> Iterator[list[Tensor]]:
    for pixels in loader:
        if isinstance(pixels, str):
            raise UserError(pixels)
        yield pixels


def evaluation_batches(
    images: Images,
    batch_size: int,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order: normalised (N, 3, S, S) and labels (N,)."""
    in_memory = isinstance(images, MemoryImages)
    chunks = _Chunks(images, batch_size)
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=0 if in_memory else workers,
        generator=torch.Generator().manual_seed(0),
    )
    for index, (pixels,) in zip(chunks.chunks, _unwrapped(loader), strict=True):
        yield preprocessing.normalise(pixels.to(device)), images.labels[index].to(device)

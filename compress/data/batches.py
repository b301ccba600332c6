"""Batches whose order and augmentation are a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.console.messages import log
from compress.data.augment import AUGMENTATIONS, ImageView
from compress.data.batch import Batch
from compress.data.dense.masked_images import IGNORE_INDEX
from compress.data.images import Images, MemoryImages, Preprocessing, split_labels
from compress.data.reader import EpochPlan, Reader
from compress.distributed.collectives import all_reduce, rank, world_size
from compress.errors import UserError


class ImageBatches:
    """Shuffled, augmented batches; each of several processes gets its part of every batch.

    A last batch of a single image is left out (batch norm), and so is one with fewer images than
    there are processes, which is said. Images in memory stay on `device` and nothing in a step
    waits for it.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augment: Sequence[str | ImageView],
        seed: int,
        device: torch.device,
        workers: int = 0,
        views: int | None = None,
        views_seed: int = 0,
    ) -> None:
        """`augment`: one per view, by name. `workers` decode files beside the training step.

        Raises:
            UserError: too few images, or more `views` of an image than its augmentation makes.
        """
        made = tuple(view if isinstance(view, ImageView) else ImageView(view) for view in augment)
        _check_views(views, made)
        images = images.to(device)
        self.preprocessing = preprocessing
        self.device = device
        self.reader = Reader(
            images=images,
            image_size=preprocessing.image_size,
            batch_size=batch_size,
            augment=made,
            seed=seed,
            views=views,
            views_seed=views_seed,
            rank=rank(),
            world=world_size(),
        )
        self._labels = images.labels.to(device)
        self._steps = _steps_per_epoch(len(images), batch_size)
        self._files: _FileSteps | None = None
        if not isinstance(images, MemoryImages):
            self._files = _FileSteps(self.reader, workers, device)

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        plan = self.reader.plan(epoch).to(self.device)
        for step, views in enumerate(self._pixels(epoch, plan)):
            index = self.reader.step(plan.order, step)
            first, _, count = self.reader.rows(step)
            moved = (v.to(self.device, non_blocking=True) for v in views)
            split = [split_labels(v, self._labels[index]) for v in moved]
            labels = split[0][1]
            yield Batch(
                images=tuple(self.preprocessing.normalise(v) for v, _ in split),
                view_ids=tuple(v[index] for v in plan.view_ids),
                view_numbers=tuple(v[index] for v in plan.view_numbers),
                labels=labels,
                index=index,
                epoch=epoch,
                step=step,
                start=first,
                of=count,
                counted=_counted(labels),
            )

    @property
    def views_per_image(self) -> int:
        """Different views that an image has in this training, at most."""
        reader = self.reader
        return reader.views or max(AUGMENTATIONS[v.augment].views for v in reader.augment)

    def _pixels(self, epoch: int, plan: EpochPlan) -> Iterator[list[Tensor]]:
        if self._files is not None:
            return self._files.epoch(epoch, len(self))
        reader = self.reader
        steps = range(len(self))
        return (reader.read(reader.step(plan.order, step), plan.view_ids) for step in steps)


def _counted(labels: Tensor) -> Tensor | None:
    """Pixels of a class in the step's batch of all processes; None of labels of whole images."""
    return None if labels.dim() == 1 else all_reduce((labels != IGNORE_INDEX).sum())


def _check_views(views: int | None, augment: Sequence[ImageView]) -> None:
    if views is None:
        return
    if any(view.mirrored_like is not None for view in augment):
        raise UserError(
            f"data.views: {views} of each image were asked for, but some are mirrored like others, "
            "so they cannot be drawn beforehand; leave out data.views"
        )
    for view in augment:
        if views > AUGMENTATIONS[view.augment].views:
            raise UserError(
                f"data.views: {views} of each image were asked for, augmentation {view.augment} "
                f"has {AUGMENTATIONS[view.augment].views}"
            )


def _steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches, and a smaller last one where all processes and batch norm can use it."""
    full, rest = divmod(images, batch_size)
    steps = full + (rest >= max(2, world_size()))
    if not steps:
        raise UserError(f"{images} training images are too few to learn from")
    if batch_size < world_size():
        raise UserError(f"a batch of {batch_size} images is too small for {world_size()} processes")
    if 2 <= rest < world_size():
        _log_left_out(rest, images, batch_size, world_size())
    return steps


@lru_cache  # once, however many trainings there are
def _log_left_out(rest: int, images: int, batch_size: int, processes: int) -> None:
    log(
        f"  each epoch leaves out {rest} of {images:,} training images, the last of its order: "
        f"after batches of {batch_size} they are fewer than the {processes} processes; fewer "
        "processes or another batch_size train all"
    )


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
        return _unwrap(self._loader)


class _Steps(Dataset["list[Tensor] | str"]):
    """A step's pixels; a user's mistake as its message, which a worker cannot raise in words."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._epoch = -1
        self._plan = EpochPlan(torch.empty(0), (), ())

    def __getitem__(self, item: tuple[int, int]) -> list[Tensor] | str:
        epoch, step = item
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self.reader.plan(epoch)
        plan = self._plan
        try:
            return self.reader.read(self.reader.step(plan.order, step), plan.view_ids)
        except UserError as error:
            return str(error)


class _Chunks(Dataset["list[Tensor] | str"]):
    """Images in order, a batch at a time."""

    def __init__(self, images: Images, batch_size: int) -> None:
        self.images = images
        self.chunks = images.in_batches(batch_size)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, item: int) -> list[Tensor] | str:
        try:
            return [self.images.fetch(self.chunks[item])]
        except UserError as error:
            return str(error)


def _unwrap(loader: "DataLoader[list[Tensor] | str]") -> Iterator[list[Tensor]]:
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
    *,
    shared: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order: normalised (N, 3, S, S) and labels (N,), or of pixels (N, H, W).

    `shared`: each of several processes gets its part of the batches; together every image once.
    """
    in_memory = isinstance(images, MemoryImages)
    chunks = _Chunks(images, batch_size)
    if shared:
        chunks.chunks = chunks.chunks[rank() :: world_size()]
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=0 if in_memory else workers,
        generator=torch.Generator().manual_seed(0),
    )
    for index, (pixels,) in zip(chunks.chunks, _unwrap(loader), strict=True):
        rgb, labels = split_labels(pixels, images.labels[index])
        yield preprocessing.normalise(rgb.to(device)), labels.to(device)

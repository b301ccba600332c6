"""A DataLoader of one's own as the batches of a training, and what is wrong with it in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.console.messages import log
from compress.data import Batch, MemoryImages, Preprocessing
from compress.errors import UserError
from compress.methods.contract import View
from compress.seeding import seed_for, seeded

_UNKNOWN = 2**62  # an index that no bank has
_READ = 256  # labels that are read at once


class Indexed(Dataset[Any]):
    """A data set of (image, label) as (image, label, index), for methods that know each image.

    With `views` V it gives a tuple of V images in place of each, which the data set augments one by
    one.
    """

    def __init__(self, dataset: Dataset[Any], views: int = 1) -> None:
        self.dataset = dataset
        self.views = views

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        images, label = zip(*(self.dataset[index][:2] for _ in range(self.views)), strict=True)
        return images if self.views > 1 else images[0], label[0], index


@dataclass(frozen=True)
class Expected:
    """What batches must hold: images as `preprocessing` says, in so many views, and labels."""

    preprocessing: Preprocessing
    num_classes: int
    views: int = 1
    reads_index: bool = False
    method: str = ""

    def read(self, item: Any) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The views of a batch, float32 (N, 3, S, S), its labels and index (N,).

        Raises:
            UserError: it is no such batch.
        """
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise UserError(
                f"the loader gives a {type(item).__name__}{size}; expected (images, labels) or "
                "(images, labels, index)"
            )
        views = list(item[0]) if isinstance(item[0], (tuple, list)) else [item[0]]
        images = [self._normalised(view) for view in views]
        labels = self._labels(item[1], len(images[0]))
        index = item[2] if len(item) == 3 else None
        if index is not None and (not _is_whole(index) or len(index) != len(labels)):
            raise UserError(
                f"the loader's index is {_kind(index)}; expected whole numbers ({len(labels)},)"
            )
        return images, labels, index

    def require(self, images: Sequence[Tensor], index: Tensor | None) -> None:
        """Refuse a batch without what the method reads.

        Raises:
            UserError: views or the index are missing.
        """
        if len(images) != self.views:
            wanted = "one image" if self.views == 1 else f"a tuple of {self.views} images"
            raise UserError(
                f"{self.method} reads {self.views} view{'s' * (self.views > 1)} of each image, the "
                f"loader gives {len(images)}; let the data set give {wanted} for each (compress."
                f"distiller.Indexed(dataset, views={self.views}) does)"
            )
        if self.reads_index and index is None:
            raise UserError(
                f"{self.method} knows each training image by its index, which the loader does not "
                "give; let the data set give (image, label, index) "
                "(compress.distiller.Indexed(dataset) does)"
            )

    def _normalised(self, images: Any) -> Tensor:
        shape = self.preprocessing.input_shape
        fits = isinstance(images, Tensor) and images.shape[1:] == shape and len(images)
        if not fits or images.dtype not in (torch.float32, torch.uint8):
            grey = isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] == 1
            hint = "; of grey images repeat the channel: images.expand(-1, 3, -1, -1)" * grey
            raise UserError(
                f"the loader gives images as {_kind(images)}; expected float32 (N, "
                f"{', '.join(map(str, shape))}), normalised, or uint8 of that shape, from 0 to "
                f"255{hint}"
            )
        return images if images.is_floating_point() else self.preprocessing.normalise(images)

    def _labels(self, labels: Any, count: int) -> Tensor:
        if not _is_whole(labels) or len(labels) != count:
            raise UserError(
                f"the loader gives labels as {_kind(labels)}; expected class numbers ({count},) of "
                "an integer type"
            )
        on_cpu = labels.device.type == "cpu"  # elsewhere, a look at them would wait for the device
        if on_cpu and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(
                f"the loader gives labels from {int(labels.min())} to {int(labels.max())}; of "
                f"{self.num_classes} classes they are 0 to {self.num_classes - 1}"
            )
        numbers: Tensor = labels.long()
        return numbers


class LoaderBatches:
    """The batches of a DataLoader, see `compress.data.batch.BatchSource`.

    An epoch's order and augmentation are those of torch's global generator, which whoever reads it
    seeds, or of the loader's own, which is seeded here. A last batch of one image is left out.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        expected: Expected,
        device: torch.device,
        *,
        seed: int,
    ) -> None:
        self.loader = loader
        self.expected = expected
        self.device = device
        self.seed = seed
        self.labels: Tensor | None = None  # (M,) of the training set: each batch's must fit
        self._steps = steps_of(loader) - _has_lone_image(loader)
        if not self._steps:
            raise UserError("the loader's only batch is one image; batch norm needs two")

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(seed_for(self.seed, "loader", epoch))
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            if set_epoch := getattr(sampler, "set_epoch", None):
                set_epoch(epoch)
        feed = iter(self.loader)  # draws now, as the generator is seeded now
        return (self.batch(item, epoch, i) for i, item in enumerate(islice(feed, self._steps)))

    def first(self, *seeds: int | str) -> Batch:
        """The first batch of the first epoch, drawn by these seeds; no generator moves."""
        own = self.loader.generator
        state = None if own is None else own.get_state()
        with seeded(*seeds):
            batch = next(self.epoch(0))
        if own is not None and state is not None:
            own.set_state(state)
        return batch

    def batch(self, item: Any, epoch: int, step: int) -> Batch:
        """What the loader gave as a batch of the loop, on the device.

        Raises:
            UserError: it is not what the method reads.
        """
        images, labels, index = self.expected.read(item)
        self.expected.require(images, index)
        if len(labels) == 1:
            raise UserError(
                "the loader gives a batch of one image, and batch norm needs two; use "
                "drop_last=True or a larger batch_size"
            )
        if index is None:
            index = torch.full_like(labels, _UNKNOWN)
        else:
            self._check_index(labels, index)
        index = index.to(self.device, non_blocking=True).long()
        return Batch(
            images=tuple(view.to(self.device, non_blocking=True) for view in images),
            view_ids=(torch.zeros_like(index),) * len(images),
            view_numbers=(torch.zeros_like(index),) * len(images),
            labels=labels.to(self.device, non_blocking=True),
            index=index,
            epoch=epoch,
            step=step,
        )

    def _check_index(self, labels: Tensor, index: Tensor) -> None:
        index, count = index.cpu().long(), len(self.loader.dataset)  # type: ignore[arg-type]
        if not 0 <= int(index.min()) <= int(index.max()) < count:
            raise UserError(
                f"the loader's index goes from {int(index.min())} to {int(index.max())}; of "
                f"{count:,} training images it is 0 to {count - 1:,}"
            )
        if self.labels is not None and not torch.equal(self.labels[index], labels.cpu()):
            raise UserError(
                "the labels of a batch are not those of the training set at its index; the index "
                "must be the image's place in the loader's data set"
            )


def steps_of(loader: Any) -> int:
    """The number of batches of a loader.

    Raises:
        UserError: it is no DataLoader, has none, or does not know how many.
    """
    if not isinstance(loader, DataLoader):
        raise UserError(
            f"expected a torch.utils.data.DataLoader of (images, labels), got {_kind(loader)}"
        )
    try:
        steps = len(loader)
    except TypeError:
        raise UserError(
            "the loader has no length, so that no epoch ends; give one over a data set with "
            "__len__ and __getitem__"
        ) from None
    if not steps:
        raise UserError(
            f"the loader is empty: {len(loader.dataset)} images in batches of "  # type: ignore[arg-type]
            f"{loader.batch_size}{', drop_last=True' if loader.drop_last else ''}"
        )
    return steps


def read_labels(loader: DataLoader[Any], expected: Expected, seed: int) -> Tensor:
    """The label (M,) of each image of a loader's data set; every image is read once.

    Raises:
        UserError: there is no such label.
    """
    labels = _LabelsOnly(loader.dataset)
    log(f"  {expected.method} reads the labels of {len(labels):,} training images")
    with seeded(seed, "labels"):
        read = DataLoader(labels, batch_size=_READ, num_workers=loader.num_workers)
        return torch.cat([expected._labels(part, len(part)) for part in read])


def evaluation_pairs(
    loader: DataLoader[Any], expected: Expected, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (N, 3, S, S) and labels (N,) of a loader, in its order.

    Raises:
        UserError: the images were not normalised as `expected.preprocessing` says.
    """
    steps_of(loader)
    for item in loader:
        images, labels, _ = expected.read(item)
        levels = _levels(images[0], expected.preprocessing)
        if not -1 <= float(levels.min()) <= float(levels.max()) <= 256:
            raise UserError(
                f"the loader's images go from {float(images[0].min()):.3g} to "
                f"{float(images[0].max()):.3g}, which no pixel from 0 to 255 gives by mean "
                f"{expected.preprocessing.mean} and std {expected.preprocessing.std}; give the "
                "preprocessing that the loader normalises with"
            )
        yield images[0].to(device), labels.to(device)


def memory_images(loader: DataLoader[Any], expected: Expected, most: int | None) -> MemoryImages:
    """The first images of a loader, all of them by default, as 8-bit pixels in memory."""
    parts, count = [], 0
    for images, labels in evaluation_pairs(loader, expected, torch.device("cpu")):
        levels = _levels(images, expected.preprocessing)
        parts.append((levels.round().clamp(0, 255).to(torch.uint8), labels))
        count += len(labels)
        if most is not None and count >= most:
            break
    pixels, known = (torch.cat(tensors)[:most] for tensors in zip(*parts, strict=True))
    return MemoryImages(pixels, known)


def loader_notes(loader: DataLoader[Any], views: Sequence[View]) -> list[str]:
    """What a data set has to see to where there are several views, and what resuming changes."""
    notes = []
    for number, view in enumerate(views, start=1):
        if view.augment is not None:
            notes.append(f"view {number} is to be augmented as by {view.augment}")
        if view.mirrored_like is not None:
            like = view.mirrored_like + 1
            notes.append(
                f"view {number} is to be mirrored where view {like} is (it is turned by "
                f"{view.rotation} degrees here)"
            )
    if loader.persistent_workers:
        notes.append(
            "the loader keeps its workers and their random numbers from epoch to epoch; a fit that "
            "was interrupted will augment otherwise than one that was not"
        )
    return notes


class _LabelsOnly(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][1]


def _has_lone_image(loader: DataLoader[Any]) -> bool:
    """Whether the last batch is one image, which the loop leaves out as it does elsewhere."""
    size = loader.batch_size
    if size is None or size < 2 or loader.drop_last:
        return False
    return len(loader.sampler) % size == 1  # type: ignore[arg-type]


def _levels(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels from 0 to 255 of normalised images, not rounded."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    return (images * std + mean) * 255


def _is_whole(values: Any) -> bool:
    return (
        isinstance(values, Tensor)
        and values.dim() == 1
        and not values.is_floating_point()
        and values.dtype != torch.bool
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a {type(value).__name__}"

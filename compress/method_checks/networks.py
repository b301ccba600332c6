"""Small networks, contexts and batches on which a method is looked at."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.data import Batch, ImageBatches, MemoryImages, Preprocessing
from compress.data.dense.images import MaskedImages, MaskedPixels
from compress.distill import Distillation
from compress.methods import Method, MethodContext, teacher_context
from compress.models import build
from compress.taps import discover

CLASSES = 5
SHAPE = (3, 16, 16)
DENSE_SHAPE = (3, 32, 32)
PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


def images(count: int = 24) -> MemoryImages:
    """Noise, whose labels go round."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(count) % CLASSES)


def masked_images(count: int = 24) -> MaskedImages:
    """Noise whose pixels have classes in squares, or none."""
    draw = torch.Generator().manual_seed(1)
    items = []
    for _ in range(count):
        pixels = torch.randint(0, 256, DENSE_SHAPE, generator=draw, dtype=torch.uint8)
        cells = torch.randint(0, CLASSES + 1, (4, 4), generator=draw)
        mask = cells.repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
        mask[mask == CLASSES] = 255
        items.append(MaskedPixels(pixels, mask))
    return MaskedImages(tuple(items), PREPROCESSING.mean)


def networks(
    teachers: int = 1, student: str = "resnet8", teacher: str = "resnet8x4"
) -> tuple[nn.Module, list[nn.Module]]:
    """A student and teachers that classify, of unequal widths: 64 and 256 channels at the end."""
    built = [build(teacher, num_classes=CLASSES, seed=10 + i) for i in range(teachers)]
    for network in built:
        network.name = teacher  # type: ignore[assignment]  # see `_source`
    return build(student, num_classes=CLASSES, seed=1), built


def dense_networks(
    teachers: int = 1, student: str = "resnet8", teacher: str = "resnet8x4"
) -> tuple[nn.Module, list[nn.Module]]:
    """Networks that segment, of unequal widths."""
    student_args: dict[str, Any] = {"encoder": student, "width": 12}
    teacher_args: dict[str, Any] = {"encoder": teacher, "width": 20}
    built = [
        build("pspnet", num_classes=CLASSES, seed=10 + i, **teacher_args) for i in range(teachers)
    ]
    network = build("pspnet", num_classes=CLASSES, seed=1, **student_args)
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # processes draw numbers of their own
    return network, built


def context(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    batch_size: int = 8,
    *,
    dense: bool = False,
) -> MethodContext:
    """All that a method for these networks is built from."""
    shape = DENSE_SHAPE if dense else SHAPE
    return MethodContext(
        student=discover(student, shape, "student", dense=dense),
        teachers=tuple(
            teacher_context(t, discover(t, shape, "teacher", dense=dense), _source(t))
            for t in teachers
        ),
        num_classes=CLASSES,
        train_size=24,
        labels=images().labels,
        batch_size=batch_size,
        steps_per_epoch=3,
        epochs=2,
    )


def _source(teacher: nn.Module) -> dict[str, Any] | None:
    """What a model file says of a teacher, where it is one of `networks`."""
    name = getattr(teacher, "name", None)
    architecture: dict[str, Any] = {"name": name, "arguments": {}}
    return None if name is None else {"architecture": architecture, "code": None, "method": None}


def batches(
    method: Method, batch_size: int = 8, count: int = 24, *, device: torch.device = CPU
) -> ImageBatches:
    """Batches of so many images, in the views that a method asks for."""
    if method.context.student.is_dense:
        return ImageBatches(
            masked_images(count),
            replace(PREPROCESSING, image_size=DENSE_SHAPE[-1]),
            batch_size=batch_size,
            augment=["scaled_crop"],
            seed=0,
            device=device,
        )
    augment = [view.image_view("crop_flip") for view in method.views]
    return ImageBatches(
        images(count), PREPROCESSING, batch_size=batch_size, augment=augment, seed=0, device=device
    )


def first_batch(module: Distillation) -> Batch:
    """The first batch of the first epoch."""
    batch: Batch = next(batches(module.method).epoch(0))
    return batch


def part(batch: Batch, rows: slice) -> Batch:
    """Contiguous rows of a whole batch, as one of several processes gets them."""

    def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t[rows] for t in tensors)

    return replace(
        batch,
        images=cut(batch.images),
        view_ids=cut(batch.view_ids),
        view_numbers=cut(batch.view_numbers),
        labels=batch.labels[rows],
        index=batch.index[rows],
        start=rows.start,
        of=len(batch.index),
    )

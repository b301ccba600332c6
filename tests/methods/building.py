"""A student, teachers and a method on small networks, and batches for them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.data import Batch, ImageBatches, MemoryImages, Preprocessing
from compress.distill import Distillation
from compress.methods import METHODS, LossWeights, Method, MethodContext, teacher_context
from compress.methods.fsp import FSP
from compress.models import build
from compress.taps import discover
from compress.tasks import Classification

CLASSES = 5
SHAPE = (3, 16, 16)
PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")
# Methods of which several teachers are the point; ca_mkd refuses one alone.
OF_SEVERAL_TEACHERS = ("aekd", "aekd_f", "aveg", "ca_mkd", "simkd_v")


def images(count: int = 24) -> MemoryImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(count) % CLASSES)


def networks(
    teachers: int = 1, student: str = "resnet8", teacher: str = "resnet8x4"
) -> tuple[nn.Module, list[nn.Module]]:
    # Unequal widths on purpose: 64 and 256 channels in the last map.
    built = [build(teacher, num_classes=CLASSES, seed=10 + i) for i in range(teachers)]
    for network in built:
        network.name = teacher  # type: ignore[assignment]  # see `_source`
    return build(student, num_classes=CLASSES, seed=1), built


def context(
    student: nn.Module, teachers: Sequence[nn.Module], batch_size: int = 8
) -> MethodContext:
    return MethodContext(
        student=discover(student, SHAPE, "student"),
        teachers=tuple(
            teacher_context(t, discover(t, SHAPE, "teacher"), _source(t)) for t in teachers
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
    architecture = {"name": name, "arguments": {}}
    return None if name is None else {"architecture": architecture, "code": None, "method": None}


def batches(
    method: Method, batch_size: int = 8, count: int = 24, *, device: torch.device = CPU
) -> ImageBatches:
    augment = [view.image_view("crop_flip") for view in method.views]
    return ImageBatches(
        images(count), PREPROCESSING, batch_size=batch_size, augment=augment, seed=0, device=device
    )


def first_batch(module: Distillation) -> Batch:
    return next(batches(module.method).epoch(0))


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


def teachers_of(build_method: Callable[[MethodContext], Method]) -> int:
    """How many teachers a method is built with."""
    several = tuple(METHODS[name] for name in OF_SEVERAL_TEACHERS)
    return 2 if isinstance(build_method, type) and issubclass(build_method, several) else 1


def distillation(
    method_class: type[Method],
    teachers: int = 0,
    weights: LossWeights | None = None,
) -> Distillation:
    # The one method that takes equal widths alone.
    teacher = "resnet14" if method_class is FSP else "resnet8x4"
    teachers = teachers or teachers_of(method_class)
    student, teacher_networks = networks(teachers, teacher=teacher)
    torch.manual_seed(0)
    method = method_class(context(student, teacher_networks))
    return Distillation(
        student,
        teacher_networks,
        method,
        weights or method.protocols["simkd"],
        Classification(),
        kd_temperature=4.0,
    )

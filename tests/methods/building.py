"""A student, teachers and a method on small networks, and batches for them."""

from collections.abc import Callable

import torch

from compress.distill import Distillation
from compress.method_checks.networks import (
    CLASSES,
    CPU,
    DENSE_SHAPE,
    PREPROCESSING,
    SHAPE,
    batches,
    context,
    dense_networks,
    first_batch,
    images,
    masked_images,
    networks,
    part,
)
from compress.methods import METHODS, LossWeights, Method, MethodContext
from compress.methods.deit import DeiT
from compress.methods.fsp import FSP
from compress.tasks import Classification, Segmentation
from tests.transformers import OwnViT

# Methods of which several teachers are the point; ca_mkd refuses one alone.
OF_SEVERAL_TEACHERS = ("aekd", "aekd_f", "aveg", "ca_mkd", "simkd_v")


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
    of = getattr(method_class, "func", method_class)  # of a partial
    kind = of if isinstance(of, type) else Method
    teacher = "resnet14" if issubclass(kind, FSP) else "resnet8x4"
    teachers = teachers or teachers_of(method_class)
    dense = not kind.images
    make = dense_networks if dense else networks
    student, teacher_networks = make(teachers, teacher=teacher)
    torch.manual_seed(0)
    if issubclass(kind, DeiT):
        student = OwnViT(heads=2, size=SHAPE[-1])
    method = method_class(context(student, teacher_networks, dense=dense))
    return Distillation(
        student,
        teacher_networks,
        method,
        weights or method.protocols["segmentation" if dense else "simkd"],
        Segmentation() if dense else Classification(),
        kd_temperature=4.0,
    )


__all__ = [
    "CLASSES",
    "CPU",
    "DENSE_SHAPE",
    "METHODS",
    "PREPROCESSING",
    "SHAPE",
    "Distillation",
    "batches",
    "context",
    "dense_networks",
    "distillation",
    "first_batch",
    "images",
    "masked_images",
    "networks",
    "part",
    "teachers_of",
]

"""A student, its method, and what its file says of them."""

from dataclasses import asdict
from typing import Any

from torch import nn

from compress import models
from compress.data import Dataset
from compress.distill.trainings import build_method
from compress.errors import UserError
from compress.methods.contract import LossWeights, Method, MethodContext, teacher_context
from compress.model_files import artifacts
from compress.model_files.descriptions import SOURCE
from compress.model_files.encoders import load_encoder_weights
from compress.model_files.weights import load_initial
from compress.recipe.schema import MethodPart
from compress.stages import task_of
from compress.stages.job import Job
from compress.taps import TapSpecs
from compress.taps.discovery import discover


def build_student(
    job: Job, data: Dataset, seed: int, teachers: list[artifacts.Student], steps_per_epoch: int
) -> tuple[nn.Module, Method]:
    """The student and the method that `job.arguments` names, for these teachers."""
    recipe = job.recipe
    part: MethodPart = job.arguments["part"]
    model = recipe.student.model
    classes = len(data.class_names)
    student = models.build(
        model.name, num_classes=classes, seed=seed, role="student", **model.arguments
    )
    shape, taps = data.preprocessing.input_shape, recipe.student.taps
    task = task_of(recipe)
    embeds = not task.has_classes
    specs = discover(
        student, shape, model.name, **taps.model_dump(), embeds=embeds, dense=task.is_dense
    )
    weights = recipe.student.weights
    if weights is not None and embeds:
        load_encoder_weights(student, model.name, weights)
    elif weights is not None:
        load_initial(student, model.name, weights, shape, dense=task.is_dense)
    context = MethodContext(
        student=specs,
        teachers=tuple(
            teacher_context(
                t.network,
                TapSpecs.from_dict(t.description["taps"]),
                source={key: t.description.get(key) for key in SOURCE},
            )
            for t in teachers
        ),
        num_classes=classes,
        train_size=len(data.train),
        labels=data.train.labels.cpu(),
        batch_size=recipe.distill.train.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.distill.train.epochs,
    )
    try:
        method = build_method(part.name, part.arguments, context, student, shape, seed=seed)
    except ValueError as error:
        raise UserError(f"distill.{part.name}: {error}") from None
    return student, method


def describe_student(
    job: Job, data: Dataset, bare: bool, method: Method, weights: LossWeights
) -> dict[str, Any]:
    """Describe the student for its model file; its metrics are still to come."""
    model = job.recipe.student.model
    part: MethodPart = job.arguments["part"]
    return artifacts.describe_distilled(
        {"name": model.name, "arguments": model.arguments},
        method,
        {"name": part.name, **part.arguments},
        data.class_names,
        data.preprocessing,
        weights=asdict(weights),
        bare=bare,
        fingerprint=job.recipe_fingerprint,
        label=job.arguments["label"],
        trial=job.arguments["trial"],
    )

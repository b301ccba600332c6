"""Problems of a recipe, all of them at once and before anything runs."""

import re
from pathlib import Path
from typing import Any

from compress import models
from compress.data import DATASETS
from compress.data.augment import AUGMENTATIONS
from compress.errors import UserError, nearest
from compress.methods import METHODS
from compress.recipe import signatures
from compress.recipe.schema import MethodPart, Named, Recipe, TransferPart, check_shape
from compress.run.stages import StageTable
from compress.run.train_checks import check_train
from compress.stages.distill import terms_for
from compress.trackers import TRACKERS, lacks

# Labels that name something else in results and transfer tasks.
_RESERVED = ("student", "distilled", "scratch", "alone", "data", "pictures")


def check_values(values: dict[str, Any], stages: StageTable) -> tuple[Recipe | None, list[str]]:
    """A recipe's plain values as a recipe, and all their problems; None where the shape is wrong.

    The one place where a recipe is validated.
    """
    recipe, problems = check_shape(values)
    return recipe, problems if recipe is None else check_recipe(recipe, stages)


def check_recipe(recipe: Recipe, stages: StageTable) -> list[str]:
    """Problems of names, arguments and files; opens no data and builds no network."""
    problems = signatures.check_named(recipe.data, DATASETS, "data", supplied=("image_size",))
    problems += _check_data(recipe)
    for i, teacher in enumerate(recipe.teacher):
        path = "teacher" if len(recipe.teacher) == 1 else f"teacher.{i}"
        problems += _check_model(teacher.model, f"{path}.model")
        problems += _check_weights(teacher.checkpoint, None, f"{path}.checkpoint")
        problems += _check_weights(teacher.weights, teacher.model, f"{path}.weights")
        if teacher.train is not None:
            problems += check_train(teacher.train, f"{path}.train")
    problems += _check_model(recipe.student.model, "student.model")
    problems += _check_weights(recipe.student.weights, recipe.student.model, "student.weights")
    problems += check_train(recipe.distill.train, "distill.train")
    parts = [("distill.method", recipe.distill.method)]
    parts += [(f"distill.compare.{i}", p) for i, p in enumerate(recipe.distill.compare)]
    for path, part in parts:
        problems += signatures.check_named(part, METHODS, path)
        if part.name in METHODS:
            problems += _check_weights_of(part, recipe, path)
    for label in recipe.methods:
        if label in _RESERVED or label.startswith("teacher") or re.search(r"-trial\d+$", label):
            problems.append(f"distill: the label '{label}' is taken by the report; choose another")
    problems += _check_trackers(recipe.trackers)
    for i, entry in enumerate(recipe.transfer):
        problems += stages.load("transfer").check(entry, f"transfer.{i}")
        problems += _check_inits(entry, f"transfer.{i}", list(recipe.methods))
    return list(dict.fromkeys(problems))


def _check_weights_of(part: MethodPart, recipe: Recipe, path: str) -> list[str]:
    method, protocol = METHODS[part.name], recipe.distill.protocol
    if protocol not in method.protocols:
        known, hint = ", ".join(method.protocols), nearest(protocol, method.protocols)
        return [f"distill.protocol: unknown protocol '{protocol}'; known: {known}{hint}"]
    terms = terms_for(part, recipe.distill)
    if terms.ce + terms.kd + terms.method == 0:
        return [f"{path}: every weight is 0, so nothing would be learned"]
    if method.batch_coupled and recipe.distill.train.accumulate > 1:
        return [
            f"{path}: the loss of {part.name} relates the images of a batch, so its parts have "
            "another loss; leave out distill.train.accumulate"
        ]
    if method.is_soft_term and terms.kd:
        return [f"{path}: {part.name} is the soft term itself; its weight is `method`, not `kd`"]
    return []


def _check_model(part: Named | None, path: str) -> list[str]:
    if part is None:
        return []
    try:
        builder = models.find(part.name)
    except UserError as error:
        return [f"{path}: {error}"]
    if part.name.partition(":")[1]:
        return []  # torchvision's builders take **kwargs; building tells
    return signatures.check(builder, part.arguments, path, supplied=("num_classes",))


def _check_weights(given: str | None, model: Named | None, path: str) -> list[str]:
    """A file that must exist, unless it is the name of published weights."""
    if given is None or Path(given).is_file():
        return []
    looks_published = "/" not in given and "." not in given
    if model is not None and model.name.startswith("torchvision:") and looks_published:
        return []
    return [f"{path}: '{given}' not found (looked in {Path.cwd()})"]


def _check_data(recipe: Recipe) -> list[str]:
    """What of the data and the engine no registry knows."""
    problems = []
    views, available = recipe.data.views, AUGMENTATIONS[recipe.data.augment].views
    if views is not None and views > available:
        problems.append(
            f"data.views: {views} of each image were asked for, augmentation "
            f"{recipe.data.augment} has {available}"
        )
    cache = recipe.engine.cache
    if cache is not None and cache.folder and Path(cache.folder).is_file():
        problems.append(f"engine.cache.folder: '{cache.folder}' is a file; give a folder")
    return problems


def _check_trackers(parts: list[Named]) -> list[str]:
    problems: list[str] = []
    names = [part.name for part in parts]
    for i, part in enumerate(parts):
        path = f"trackers.{i}"
        problems += signatures.check_named(part, TRACKERS, path)
        if part.name in names[:i]:
            problems.append(f"{path}: '{part.name}' stands twice")
        elif part.name in TRACKERS and (lacking := lacks(part.name)):
            problems.append(f"{path}: {lacking}")
    return problems


def _check_inits(entry: TransferPart, path: str, labels: list[str]) -> list[str]:
    alone = ["alone"] if "none" in labels else []
    accepted = ["distilled", "scratch", "teacher", *alone, *labels]
    return [
        f"{path}.init: unknown '{init}'; accepted: {', '.join(accepted)}{nearest(init, accepted)}"
        for init in entry.init
        if init not in accepted
    ]

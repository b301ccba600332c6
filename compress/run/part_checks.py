"""Problems of the parts of a recipe, of each for itself and beside the others."""

import re
from pathlib import Path

from torch import nn

from compress import models
from compress.data import DATASETS, DENSE_DATASETS, Preprocessing
from compress.data.augment import AUGMENTATIONS
from compress.errors import UserError, nearest
from compress.methods import METHODS, find_method, known_method
from compress.recipe import signatures
from compress.recipe.schema import Data, MethodPart, Named, Recipe, TeacherPart, TransferPart
from compress.run.place_checks import check_weights
from compress.run.stages import StageTable
from compress.run.train_checks import check_train
from compress.self_supervised import SELF_SUPERVISED
from compress.stages import logits_only, task_of
from compress.stages.distill import terms_for, weights_given
from compress.stages.teacher import requested_preprocessing
from compress.trackers import TRACKERS, lacks

# Labels that name something else in results and transfer tasks.
_RESERVED = ("student", "distilled", "scratch", "alone", "data", "pictures")


def check_parts(recipe: Recipe, stages: StageTable) -> list[str]:
    """Problems of each part for itself, whatever the others are."""
    problems = signatures.check_named(recipe.data, DATASETS, "data", supplied=("image_size",))
    problems += _check_data_task(recipe)
    for i, teacher in enumerate(recipe.teacher):
        path = "teacher" if len(recipe.teacher) == 1 else f"teacher.{i}"
        problems += _check_model(teacher.model, f"{path}.model")
        problems += check_weights(teacher.checkpoint, None, f"{path}.checkpoint")
        problems += check_weights(teacher.weights, teacher.model, f"{path}.weights")
        problems += check_weights(teacher.onnx, None, f"{path}.onnx")
        problems += check_weights(teacher.outputs, None, f"{path}.outputs")
        problems += _check_preprocessing(teacher, path)
        problems += _check_teacher_task(recipe, teacher, path)
        problems += logits_only.check_use(recipe, teacher, path)
        if teacher.train is not None:
            problems += check_train(teacher.train, f"{path}.train")
    problems += _check_model(recipe.student.model, "student.model")
    problems += check_weights(recipe.student.weights, recipe.student.model, "student.weights")
    problems += check_train(recipe.distill.train, "distill.train")
    for path, part in _methods(recipe).items():
        problems += _check_method(part, path)
    problems += _check_trackers(recipe.trackers)
    for i, entry in enumerate(recipe.transfer):
        problems += stages.load("transfer").check(entry, f"transfer.{i}")
    return problems


def check_relations(recipe: Recipe) -> list[str]:
    """Problems between parts."""
    problems = _check_views(recipe.data)
    for path, part in _methods(recipe).items():
        if known_method(part.name) is not None:
            problems += _check_weights_of(part, recipe, path)
    labels = list(recipe.methods)
    for label in labels:
        if label in _RESERVED or label.startswith("teacher") or re.search(r"-trial\d+$", label):
            problems.append(f"distill: the label '{label}' is taken by the report; choose another")
    wished = recipe.export.student if recipe.export is not None else None
    if wished is not None and wished not in labels:
        problems.append(
            f"export.student: no student '{wished}'; this recipe trains {', '.join(labels)}"
            f"{nearest(wished, labels)}"
        )
    if recipe.transfer and task_of(recipe).is_dense:
        problems.append(
            "transfer: takes encoders of students that classify or embed; leave it out where "
            "task is segmentation"
        )
    for i, entry in enumerate(recipe.transfer):
        problems += _check_inits(entry, f"transfer.{i}", labels)
    return problems


def _methods(recipe: Recipe) -> dict[str, MethodPart]:
    """The methods by their paths."""
    others = {f"distill.compare.{i}": part for i, part in enumerate(recipe.distill.compare)}
    return {"distill.method": recipe.distill.method, **others}


def _check_method(part: MethodPart, path: str) -> list[str]:
    try:
        method = find_method(part.name)
    except UserError as error:
        return [f"{path}: {error}"]
    beside = [key for key in MethodPart.model_fields if key != "name"]
    return signatures.check(method, part.arguments, path, beside=beside)


def _check_weights_of(part: MethodPart, recipe: Recipe, path: str) -> list[str]:
    method, protocol = find_method(part.name), recipe.distill.protocol
    needs = method.needs(part.arguments)
    if problem := _task_problem(part, recipe):
        return [f"{path}: {problem}"]
    if protocol not in needs.protocols:
        known, hint = ", ".join(needs.protocols), nearest(protocol, needs.protocols)
        return [f"distill.protocol: unknown protocol '{protocol}'; known: {known}{hint}"]
    if not task_of(recipe).has_classes and (problem := _label_problem(part, recipe)):
        return [f"{path}: {problem}, and data.labels is false"]
    terms = terms_for(part, recipe)
    if terms.ce + terms.kd + terms.method == 0:
        return [f"{path}: every weight is 0, so nothing would be learned"]
    if recipe.data.views and any(view.mirrored_like is not None for view in needs.views):
        return [
            f"{path}: {part.name} mirrors its views of an image alike, so they cannot be drawn "
            "beforehand; leave out data.views"
        ]
    if needs.batch_coupled and recipe.distill.train.accumulate > 1:
        return [
            f"{path}: the loss of {part.name} relates the images of a batch, so its parts have "
            "another loss; leave out distill.train.accumulate"
        ]
    if method.is_soft_term and terms.kd:
        return [f"{path}: {part.name} is the soft term itself; its weight is `method`, not `kd`"]
    return []


def _task_problem(part: MethodPart, recipe: Recipe) -> str | None:
    """Why a method is of no use for the task; None where it is."""
    method, is_dense = find_method(part.name), task_of(recipe).is_dense
    fit = ", ".join(name for name, one in METHODS.items() if one.dense)
    if is_dense and not method.dense:
        return f"{part.name} relates whole images, not pixels; for segmentation there are {fit}"
    if not is_dense and not method.images:
        return f"{part.name} is for `task: segmentation`; it reads logits or maps of pixels"
    return None


def _label_problem(part: MethodPart, recipe: Recipe) -> str | None:
    """What a method cannot do without labels and logits; None where it needs neither."""
    method = find_method(part.name)
    needs, given = method.needs(part.arguments), weights_given(part, recipe.distill)
    if given is not None and (given.ce or given.kd):
        return "ce and kd weigh labels and logits"
    if needs.reads_labels:
        return f"{part.name} reads labels"
    if method.reads_classifier or "logits" in (*method.student_taps, *needs.teacher_taps):
        return f"{part.name} reads a classifier or its logits"
    return None


def _check_data_task(recipe: Recipe) -> list[str]:
    """Problems of data that are those of the task."""
    data, is_dense = recipe.data, task_of(recipe).is_dense
    if data.name not in DATASETS:
        return []  # told elsewhere
    if is_dense != (data.name in DENSE_DATASETS):
        known = ", ".join(n for n in DATASETS if (n in DENSE_DATASETS) == is_dense)
        kind = (
            "segmentation learns from images with masks"
            if is_dense
            else (f"{data.name} has masks, which `task: segmentation` learns from")
        )
        return [f"data: {kind}; task {recipe.task} takes {known}, got {data.name}"]
    if not is_dense:
        given = {"scales": data.scales, "window": data.window, "flip": not data.flip}
        wrong = [key for key, value in given.items() if value]
        problems = [f"data.{key}: used where task is segmentation only" for key in wrong]
        if data.augment == "scaled_crop":
            problems.append("data.augment: scaled_crop is for images with masks")
        return problems
    problems = []
    if data.augment not in ("scaled_crop", "none"):
        problems.append(
            f"data.augment: {data.augment} would leave masks as they are; images with masks take "
            "scaled_crop or none"
        )
    if not data.labels:
        problems.append("data.labels: segmentation learns from masks, which are its labels")
    if data.classes is not None:
        problems.append("data.classes: masks have the classes that they have; leave it out")
    return problems


def _check_teacher_task(recipe: Recipe, teacher: TeacherPart, path: str) -> list[str]:
    """Problems of a teacher that are those of the task."""
    if task_of(recipe).has_classes:
        given = {"head": teacher.head, "ssl": teacher.ssl}
        return [f"{path}.{k}: used where data.labels is false only" for k, v in given.items() if v]
    if teacher.ssl is not None:
        return _check_self_supervised(teacher.ssl, f"{path}.ssl")
    if teacher.train is not None:
        return [f"{path}.train: learns from labels, and data.labels is false; give ssl or weights"]
    return []


def _check_self_supervised(part: Named, path: str) -> list[str]:
    problems = signatures.check_named(part, SELF_SUPERVISED, path, supplied=("seed",))
    if problems:
        return problems
    try:
        SELF_SUPERVISED[part.name](nn.Identity(), 1, seed=0, **part.arguments)
    except ValueError as error:
        return [f"{path}: {error}"]
    return []


def _check_preprocessing(teacher: TeacherPart, path: str) -> list[str]:
    if teacher.preprocessing != "own" or (teacher.model is None and not _is_there(teacher)):
        return []  # a missing file is told elsewhere
    try:
        requested_preprocessing(teacher, Preprocessing(1, (0, 0, 0), (1, 1, 1)))
    except UserError as error:
        return [str(error).replace("teacher.", f"{path}.", 1)]
    except ImportError:
        return []  # timm is not there, which the check of the model tells
    return []


def _is_there(teacher: TeacherPart) -> bool:
    return teacher.checkpoint is not None and Path(teacher.checkpoint).is_file()


def _check_model(part: Named | None, path: str) -> list[str]:
    if part is None:
        return []
    try:
        builder = models.find(part.name)
    except (UserError, ValueError, OSError) as error:  # no module or file can have such a name
        return [f"{path}: {error}"]
    if part.name.partition(":")[1]:
        return []  # torchvision's builders take **kwargs; building tells
    return signatures.check(builder, part.arguments, path, supplied=("num_classes",))


def _check_views(data: Data) -> list[str]:
    available = AUGMENTATIONS[data.augment].views
    if data.views is None or data.views <= available:
        return []
    return [
        f"data.views: {data.views} of each image were asked for, augmentation {data.augment} has "
        f"{available}"
    ]


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

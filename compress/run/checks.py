"""What is wrong with a recipe, all of it at once and before anything runs."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from compress import models
from compress.data import DATASETS, IMAGE_SIZES
from compress.data.augment import AUGMENTATIONS
from compress.errors import UserError, nearest
from compress.methods import METHODS
from compress.methods.contract import Context, Method, teacher_context
from compress.models.layout import check_forward
from compress.recipe import signatures
from compress.recipe.schema import MethodPart, Named, Recipe, TapPaths, TransferPart
from compress.run.plan import labelled
from compress.run.train_checks import check_named, check_train, check_transfer_train
from compress.seeding import seeded
from compress.stages import dataset_of
from compress.stages.distill import terms_for
from compress.stages.teacher import normalised_otherwise, own_description
from compress.taps import Tapped, TapSpecs
from compress.taps.discovery import discover
from compress.teacher.ensemble import check_int8
from compress.trackers import TRACKERS, lacks

# Labels that name something else in results and transfer tasks.
_RESERVED = ("student", "distilled", "scratch", "alone", "data", "pictures")
# Any class count will do where only shapes are looked at and the data are not open yet.
_PROBE_CLASSES = 10
_PROBE_IMAGES = 1000


def check_recipe(recipe: Recipe) -> list[str]:
    """Problems of names, arguments and files; opens no data and builds no network."""
    problems = check_named(recipe.data, DATASETS, "data", supplied=("image_size",))
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
        found = check_named(part, METHODS, path)
        problems += found
        if part.name in METHODS:
            problems += _check_weights_of(part, recipe, path)
    for label in labelled(recipe):
        if label in _RESERVED or label.startswith("teacher") or re.search(r"-trial\d+$", label):
            problems.append(f"distill: the label '{label}' is taken by the report; choose another")
    problems += _check_trackers(recipe.trackers)
    for i, entry in enumerate(recipe.transfer):
        problems += _check_transfer(entry, f"transfer.{i}", list(labelled(recipe)))
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
        problems += check_named(part, TRACKERS, path)
        if part.name in names[:i]:
            problems.append(f"{path}: '{part.name}' stands twice")
        elif part.name in TRACKERS and (lacking := lacks(part.name)):
            problems.append(f"{path}: {lacking}")
    return problems


def _check_transfer(entry: TransferPart, path: str, labels: list[str]) -> list[str]:
    # Only recipes with transfer need its parts.
    stage = importlib.import_module("eval.transfer.stage")
    if entry.task not in stage.TASKS:
        known = ", ".join(stage.TASKS)
        hint = nearest(entry.task, stage.TASKS)
        return [f"{path}.task: unknown task '{entry.task}'; known: {known}{hint}"]
    problems = signatures.check(stage.TASKS[entry.task], entry.own_arguments, path)
    problems += check_named(entry.data, stage.DATASETS[entry.task], f"{path}.data")
    problems += check_transfer_train(entry.train, f"{path}.train")
    root = entry.data.arguments.get("root")
    if isinstance(root, str) and not Path(root).is_dir():
        problems.append(f"{path}.data.root: folder '{root}' not found (looked in {Path.cwd()})")
    alone = ["alone"] if "none" in labels else []
    accepted = ["distilled", "scratch", "teacher", *alone, *labels]
    for init in entry.init:
        if init not in accepted:
            problems.append(
                f"{path}.init: unknown '{init}'; accepted: {', '.join(accepted)}"
                f"{nearest(init, accepted)}"
            )
    return problems


@dataclass(frozen=True)
class Shapes:
    """Taps of the teachers and the student, each method as it would be built, or why it is not."""

    teachers: list[tuple[str, TapSpecs]]
    student: tuple[str, TapSpecs]
    methods: dict[str, Method]
    refused: dict[str, str]


def _read_of_teachers(method: Method, part: MethodPart, recipe: Recipe) -> tuple[str, ...]:
    soft = ("logits",) if terms_for(part, recipe.distill).kd else ()
    return *method.teacher_taps, *soft


def teacher_remarks(recipe: Recipe) -> list[str]:
    """What is odd but no mistake about teachers from files; opens the data, where they are here."""
    remarks = []
    for part in recipe.teacher:
        try:
            known = own_description(part)
            if part.checkpoint is None or known is None:
                continue
            shown = dataset_of(recipe).preprocessing
        except UserError:
            continue  # the run tells what is wrong with the file or the data
        remark = normalised_otherwise(part.checkpoint, known, shown)
        remarks += [f"teacher: {remark}"] if remark is not None else []
    return remarks


def probe(recipe: Recipe, num_classes: int = _PROBE_CLASSES) -> tuple[Shapes | None, list[str]]:
    """Build every network and method once with random weights, to find what does not fit."""
    size = recipe.data.image_size or IMAGE_SIZES[recipe.data.name]
    problems: list[str] = []
    known: dict[str, tuple[torch.nn.Module, TapSpecs]] = {}

    def tapped(
        part: Named, taps: TapPaths, path: str, *, learns: bool
    ) -> tuple[torch.nn.Module, TapSpecs] | None:
        shape = (3, size, size)
        try:
            key = part.model_dump_json() + taps.model_dump_json()
            if key not in known:
                network = models.build(part.name, num_classes=num_classes, **part.arguments)
                known[key] = network, discover(network, shape, part.name, **taps.model_dump())
            check_forward(known[key][0], shape, learns=learns)
            return known[key]
        except Exception as error:  # whatever a network's own code says of such an input
            problems.append(f"{path}: {part.name} cannot be used at {size} pixels: {error}")
            return None

    student = tapped(recipe.student.model, recipe.student.taps, "student", learns=True)
    if student is None or any(part.model is None for part in recipe.teacher):
        return None, problems  # a checkpoint that describes itself is looked at when it is read
    teachers = [
        (part.model.name, tapped(part.model, part.taps, "teacher", learns=part.train is not None))
        for part in recipe.teacher
        if part.model is not None
    ]
    if problems:
        return None, problems
    known_teachers = [teacher for _, teacher in teachers if teacher is not None]
    context = Context(
        student=student[1],
        teachers=tuple(teacher_context(*teacher) for teacher in known_teachers),
        num_classes=num_classes,
        train_size=_PROBE_IMAGES,
        labels=torch.arange(_PROBE_IMAGES) % num_classes,
        batch_size=recipe.distill.train.batch_size,
        steps_per_epoch=1,
        epochs=recipe.distill.train.epochs,
    )
    methods, refused = {}, {}
    for label, part in labelled(recipe).items():
        try:
            with seeded(0, "method", part.name):
                methods[label] = METHODS[part.name](context, **part.arguments)
            Tapped(student[0], student[1], methods[label].student_taps)
            for network, specs in known_teachers:
                Tapped(network, specs, methods[label].teacher_taps)
                if recipe.engine.teacher == "int8":
                    check_int8(network, specs, _read_of_teachers(methods[label], part, recipe))
            methods[label].deploy(student[0])
        except (ValueError, UserError) as error:
            refused[label] = str(error)
    shapes = Shapes(
        [(name, t[1]) for name, t in teachers if t is not None],
        (recipe.student.model.name, student[1]),
        methods,
        refused,
    )
    return shapes, [f"distill: {label}: {reason}" for label, reason in refused.items()]

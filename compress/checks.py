"""What is wrong with a recipe, all of it at once and before anything runs."""

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress import models, signatures
from compress.data import DATASETS, IMAGE_SIZES
from compress.data.augment import AUGMENTATIONS
from compress.distillation import teacher_context
from compress.errors import UserError, nearest
from compress.mending import concerns, mended
from compress.methods import METHODS
from compress.methods.base import Context, Method
from compress.models.layout import check_forward
from compress.models.weights import load_state, read_state
from compress.place_checks import check_batches, check_places, check_weights, published_weights
from compress.plan import labelled
from compress.randomness import seeded
from compress.recipe import Data, MethodPart, Named, Recipe, TapPaths, TransferPart, check_shape
from compress.stages import dataset_of
from compress.stages.distill import terms_for
from compress.stages.fast_teachers import check_int8
from compress.stages.teacher import normalised_otherwise, own_description
from compress.tap_discovery import discover
from compress.taps import Tapped, TapSpecs
from compress.trackers import TRACKERS, lacks
from compress.train_checks import check_named, check_train, check_transfer_train

# Labels that name something else in results and transfer tasks.
_RESERVED = ("student", "distilled", "scratch", "alone", "data", "pictures")
# Any class count will do where only shapes are looked at and the data are not open yet.
_PROBE_CLASSES = 10
_PROBE_IMAGES = 1000


def recipe_from(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """A recipe's plain values as a recipe, and all that is wrong with them.

    Where a part has the wrong shape the recipe is None, and the other parts are checked all the
    same.
    """
    recipe, problems = check_shape(raw)
    if recipe is not None:
        return recipe, list(dict.fromkeys([*check_recipe(recipe), *check_places(recipe)]))
    rest, places = mended(raw)
    if rest is not None:
        others = (*_check_parts(rest), *check_places(rest))
        problems += [problem for problem in others if not concerns(problem, places)]
    return None, list(dict.fromkeys(problems))


def check_recipe(recipe: Recipe) -> list[str]:
    """Problems of names, arguments and files; opens no data and builds no network."""
    return list(dict.fromkeys([*_check_parts(recipe), *_check_relations(recipe)]))


def _check_parts(recipe: Recipe) -> list[str]:
    """Problems of each part for itself, whatever the others are."""
    problems = check_named(recipe.data, DATASETS, "data", supplied=("image_size",))
    for i, teacher in enumerate(recipe.teacher):
        path = "teacher" if len(recipe.teacher) == 1 else f"teacher.{i}"
        problems += _check_model(teacher.model, f"{path}.model")
        problems += check_weights(teacher.checkpoint, None, f"{path}.checkpoint")
        problems += check_weights(teacher.weights, teacher.model, f"{path}.weights")
        if teacher.train is not None:
            problems += check_train(teacher.train, f"{path}.train")
    problems += _check_model(recipe.student.model, "student.model")
    problems += check_weights(recipe.student.weights, recipe.student.model, "student.weights")
    problems += check_train(recipe.distill.train, "distill.train")
    for path, part in _methods(recipe).items():
        problems += check_named(part, METHODS, path)
    problems += _check_trackers(recipe.trackers)
    for i, entry in enumerate(recipe.transfer):
        problems += _check_transfer(entry, f"transfer.{i}")
    return problems


def _check_relations(recipe: Recipe) -> list[str]:
    """Problems between parts."""
    problems = _check_views(recipe.data)
    for path, part in _methods(recipe).items():
        if part.name in METHODS:
            problems += _check_weights_of(part, recipe, path)
    labels = list(labelled(recipe))
    for label in labels:
        if label in _RESERVED or label.startswith("teacher") or re.search(r"-trial\d+$", label):
            problems.append(f"distill: the label '{label}' is taken by the report; choose another")
    for i, entry in enumerate(recipe.transfer):
        problems += _check_inits(entry, f"transfer.{i}", labels)
    return problems


def _methods(recipe: Recipe) -> dict[str, MethodPart]:
    """The methods by their paths."""
    others = {f"distill.compare.{i}": part for i, part in enumerate(recipe.distill.compare)}
    return {"distill.method": recipe.distill.method, **others}


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
        problems += check_named(part, TRACKERS, path)
        if part.name in names[:i]:
            problems.append(f"{path}: '{part.name}' stands twice")
        elif part.name in TRACKERS and (lacking := lacks(part.name)):
            problems.append(f"{path}: {lacking}")
    return problems


def _check_transfer(entry: TransferPart, path: str) -> list[str]:
    stage = importlib.import_module("eval.stage")  # only recipes with transfer need its parts
    if entry.task not in stage.TASKS:
        known = ", ".join(stage.TASKS)
        hint = nearest(entry.task, stage.TASKS)
        return [f"{path}.task: unknown task '{entry.task}'; known: {known}{hint}"]
    problems = signatures.check(stage.TASKS[entry.task], entry.own_arguments, path)
    problems += check_named(entry.data, stage.DATASETS[entry.task], f"{path}.data")
    problems += check_transfer_train(entry.train, f"{path}.train")
    root = entry.data.arguments.get("root")
    if isinstance(root, str) and not os.path.isdir(root):
        problems.append(f"{path}.data.root: folder '{root}' not found (looked in {Path.cwd()})")
    return problems


def _check_inits(entry: TransferPart, path: str, labels: list[str]) -> list[str]:
    alone = ["alone"] if "none" in labels else []
    accepted = ["distilled", "scratch", "teacher", *alone, *labels]
    return [
        f"{path}.init: unknown '{init}'; accepted: {', '.join(accepted)}{nearest(init, accepted)}"
        for init in entry.init
        if init not in accepted
    ]


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


def can_be_built(problems: Sequence[str]) -> bool:
    """Whether networks and methods can be, whatever else is wrong with their recipe."""
    return not any(p.startswith(("data", "teacher", "student", "distill")) for p in problems)


_Tapped = tuple[torch.nn.Module, TapSpecs]


@dataclass(frozen=True)
class _Builder:
    """Builds the networks of a recipe, each architecture once, and gathers what does not fit."""

    size: int
    num_classes: int
    problems: list[str] = field(default_factory=list)
    known: dict[str, _Tapped] = field(default_factory=dict)

    def tapped(
        self, part: Named, taps: TapPaths, given: str | None, path: str, *, learns: bool
    ) -> _Tapped | None:
        """A network and its taps; None where it, or the file `given` for it, does not fit."""
        shape = (3, self.size, self.size)
        try:
            key = part.model_dump_json() + taps.model_dump_json()
            if key not in self.known:
                network = models.build(part.name, num_classes=self.num_classes, **part.arguments)
                specs = discover(network, shape, part.name, **taps.model_dump())
                self.known[key] = network, specs
            check_forward(self.known[key][0], shape, learns=learns)
        except Exception as error:  # whatever a network's own code says of such an input
            said = f"{part.name} cannot be used at {self.size} pixels: {error}"
            self.problems.append(f"{path}: {said}")
            return None
        return self.known[key] if self._takes(self.known[key], part.name, given, path) else None

    def _takes(self, tapped: _Tapped, model: str, given: str | None, path: str) -> bool:
        """Whether the file of a network's weights fits; one that is missing is told elsewhere."""
        if given is None or given in published_weights(model) or not os.path.isfile(given):
            return True
        try:
            load_state(tapped[0], read_state(Path(given)), tapped[1].classifier, given)
        except UserError as error:
            self.problems.append(f"{path}: {error}")
            return False
        return True


def _methods_for(
    context: Context, recipe: Recipe, student: _Tapped, teachers: Sequence[_Tapped]
) -> tuple[dict[str, Method], dict[str, str]]:
    """Every method by its label as it would be built, and why another cannot be."""
    methods: dict[str, Method] = {}
    refused: dict[str, str] = {}
    for label, part in labelled(recipe).items():
        try:
            with seeded(0, "method", part.name):
                methods[label] = METHODS[part.name](context, **part.arguments)
            Tapped(student[0], student[1], methods[label].student_taps)
            for network, specs in teachers:
                Tapped(network, specs, methods[label].teacher_taps)
                if recipe.engine.teacher == "int8":
                    check_int8(network, specs, _read_of_teachers(methods[label], part, recipe))
            methods[label].deploy(student[0])
        # An absurd argument is found where it is used, such as one that fills the memory.
        except (ValueError, UserError, RuntimeError, ArithmeticError, MemoryError) as error:
            refused[label] = str(error)
    return methods, refused


def probe(
    recipe: Recipe, num_classes: int = _PROBE_CLASSES, device: torch.device | None = None
) -> tuple[Shapes | None, list[str]]:
    """Build every network and method once with random weights, to find what does not fit.

    Args:
        device: what networks will run on; where given, its memory must do for what is timed.
    """
    size = recipe.data.image_size or IMAGE_SIZES[recipe.data.name]
    builder = _Builder(size, num_classes)
    problems = builder.problems
    role = recipe.student
    student = builder.tapped(role.model, role.taps, role.weights, "student", learns=True)
    if student is None or any(part.model is None for part in recipe.teacher):
        return None, problems  # a checkpoint that describes itself is looked at when it is read
    teachers = []
    for part in recipe.teacher:
        given, learns = part.checkpoint or part.weights, part.train is not None
        if part.model is not None:
            tapped = builder.tapped(part.model, part.taps, given, "teacher", learns=learns)
            teachers.append((part.model.name, tapped))
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
    methods, refused = _methods_for(context, recipe, student, known_teachers)
    unfit = [f"distill: {label}: {reason}" for label, reason in refused.items()]
    if device is not None:
        networks = [(role.model.name, student), *teachers]
        known = {name: network[1] for name, network in networks if network is not None}
        unfit += check_batches(recipe, known, size, device)
    shapes = Shapes(
        [(name, t[1]) for name, t in teachers if t is not None],
        (role.model.name, student[1]),
        methods,
        refused,
    )
    return shapes, unfit

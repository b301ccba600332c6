"""What is wrong with a recipe, all of it at once and before anything runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress import models
from compress.data import IMAGE_SIZES
from compress.distill.module import teacher_context
from compress.errors import UserError
from compress.methods import METHODS
from compress.methods.contract import Context, Method
from compress.model_files.weights import load_state, read_state
from compress.models.forward import check_forward
from compress.recipe.partial import concerns, mended
from compress.recipe.schema import MethodPart, Named, Recipe, TapPaths, check_shape
from compress.run.part_checks import check_parts, check_relations
from compress.run.place_checks import check_batches, check_places, published_weights
from compress.run.plan import labelled
from compress.seeding import seeded
from compress.stages import dataset_of
from compress.stages.distill import terms_for
from compress.stages.fast_teachers import check_int8
from compress.stages.teacher import normalised_otherwise, own_description
from compress.taps import Tapped, TapSpecs
from compress.taps.discovery import discover

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
        others = (*check_parts(rest), *check_places(rest))
        problems += [problem for problem in others if not concerns(problem, places)]
    return None, list(dict.fromkeys(problems))


def check_recipe(recipe: Recipe) -> list[str]:
    """Problems of names, arguments and files; opens no data and builds no network."""
    return list(dict.fromkeys([*check_parts(recipe), *check_relations(recipe)]))


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

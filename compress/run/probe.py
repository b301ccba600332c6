"""Every network and method of a recipe built once, to find those that do not fit each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from compress import models
from compress.accounting import count_parameters
from compress.data import IMAGE_SIZES, Preprocessing
from compress.errors import UserError
from compress.methods import find_method
from compress.methods.contract import Method, MethodContext, teacher_context
from compress.model_files.encoders import NO_HEAD, encoder_tensors
from compress.model_files.weights import (
    is_whole,
    load_encoder,
    load_state,
    published_weights,
    read_state,
)
from compress.models import user_code
from compress.models.forward import check_forward
from compress.recipe.schema import MethodPart, Named, Recipe, TapPaths, TeacherPart
from compress.run.place_checks import check_batches
from compress.seeding import seeded
from compress.stages import logits_only, task_of
from compress.stages.distill import terms_for
from compress.stages.teacher import requested_preprocessing
from compress.taps import Tapped, TapSpecs
from compress.taps.discovery import discover
from compress.teacher.settings import check_int8

# Any class count will do where only shapes are looked at and the data are not open yet.
_CLASSES = 10
_IMAGES = 1000

_Network = tuple[nn.Module, TapSpecs]


@dataclass(frozen=True)
class Shapes:
    """Taps of the teachers and the student, each method as it would be built, or why it is not."""

    teachers: list[tuple[str, TapSpecs]]
    student: tuple[str, TapSpecs]
    methods: dict[str, Method]
    refused: dict[str, str]
    added: dict[str, int]  # parameters of what ships beyond those of the student, by label


def can_be_built(problems: Sequence[str]) -> bool:
    """Whether networks and methods can be, whatever else is wrong with their recipe."""
    return not any(p.startswith(("data", "teacher", "student", "distill")) for p in problems)


def probe(
    recipe: Recipe, num_classes: int = _CLASSES, device: torch.device | None = None
) -> tuple[Shapes | None, list[str]]:
    """Build every network and method; their shapes, None where a network does not fit, and why.

    Args:
        device: what networks will run on; where given, its memory must do for what is timed.
    """
    task = task_of(recipe)
    num_classes = num_classes if task.has_classes else 0
    size = recipe.data.image_size or IMAGE_SIZES[recipe.data.name]
    networks = _Networks(size, num_classes, task.is_dense)
    role = recipe.student
    student = networks.tap(role.model, role.taps, role.weights, "student", learns=True)
    if student is None or any(
        part.model is None and part.logits_file is None for part in recipe.teacher
    ):
        # A checkpoint that describes itself is looked at when it is read.
        return None, networks.problems
    teachers = _tap_teachers(recipe, networks)
    if networks.problems:
        return None, networks.problems
    methods, refused, added = _build_methods(recipe, num_classes, student, [n for _, n in teachers])
    problems = [f"distill: {label}: {reason}" for label, reason in refused.items()]
    named = [(name, specs) for name, (_, specs) in teachers]
    if device is not None:
        taps = dict([(role.model.name, student[1]), *named])
        problems += check_batches(recipe, taps, networks.size, device)
    return Shapes(named, (role.model.name, student[1]), methods, refused, added), problems


def _tap_teachers(recipe: Recipe, networks: "_Networks") -> list[tuple[str, _Network]]:
    """The teachers by name; what is wrong with others is in the networks' problems."""
    teachers: list[tuple[str, _Network]] = []
    for part in recipe.teacher:
        if part.logits_file is not None:
            specs = logits_only.specs_of(networks.num_classes)
            teachers.append((logits_only.name_of(part), (nn.Identity(), specs)))
        elif part.model is not None:
            weights, learns = part.checkpoint or part.weights, part.train is not None
            size = _image_size(part, networks.size)
            network = networks.tap(
                part.model, part.taps, weights, "teacher", learns=learns, size=size, head=part.head
            )
            teachers += [(part.model.name, network)] if network is not None else []
    return teachers


def _image_size(part: TeacherPart, usual: int) -> int:
    """Pixels of the images that a teacher reads; the mean and deviation are not looked at here."""
    try:
        plain = Preprocessing(usual, (0, 0, 0), (1, 1, 1))
        return requested_preprocessing(part, plain).image_size
    except UserError:
        return usual  # the check of the parts tells


@dataclass(frozen=True)
class _Networks:
    """Builds and taps the networks of a recipe, each once, and keeps what is wrong with them."""

    size: int
    num_classes: int
    dense: bool = False
    problems: list[str] = field(default_factory=list)
    _built: dict[str, _Network] = field(default_factory=dict)

    def tap(
        self,
        part: Named,
        taps: TapPaths,
        weights: str | None,
        path: str,
        *,
        learns: bool,
        size: int | None = None,
        head: str | None = None,
    ) -> _Network | None:
        """Build and tap a network; None where it, or the file `weights` for it, does not fit.

        `size` is that of its images where they are not the data's.
        """
        size = size or self.size
        shape = (3, size, size)
        try:
            key = part.model_dump_json() + taps.model_dump_json() + f"{size} {head}"
            if key not in self._built:
                cut = None if head == NO_HEAD else head
                module = models.build(
                    part.name, num_classes=self.num_classes, head=cut, **part.arguments
                )
                specs = discover(
                    module,
                    shape,
                    part.name,
                    **taps.model_dump(),
                    embeds=self.num_classes == 0,
                    dense=self.dense,
                )
                self._built[key] = module, specs
            check_forward(self._built[key][0], shape, learns=learns, dense=self.dense)
        except Exception as error:  # whatever a network's own code says of such an input
            reason = f"{part.name} cannot be used at {size} pixels: {error}"
            self.problems.append(f"{path}: {reason}")
            return None
        fits = self._fits(self._built[key], part.name, weights, path, head)
        return self._built[key] if fits else None

    def _fits(
        self, network: _Network, model: str, weights: str | None, path: str, head: str | None
    ) -> bool:
        """Whether the file of a network's weights fits; a missing one is found elsewhere."""
        if weights is None or weights in published_weights(model) or not os.path.isfile(weights):
            return True
        try:
            state, classifiers = read_state(Path(weights)), network[1].classifiers
            if self.num_classes == 0:
                state = encoder_tensors(state, network[0], head)[1]
            if self.dense and hasattr(network[0], "encoder_name") and not is_whole(state):
                load_encoder(network[0], state, weights)
            else:
                load_state(network[0], state, classifiers, weights)
        except UserError as error:
            self.problems.append(f"{path}: {error}")
            return False
        return True


def _build_methods(
    recipe: Recipe, num_classes: int, student: _Network, teachers: list[_Network]
) -> tuple[dict[str, Method], dict[str, str], dict[str, int]]:
    """The methods by label, why others cannot be built for these networks, and what ships more."""
    context = MethodContext(
        student=student[1],
        teachers=tuple(teacher_context(*teacher) for teacher in teachers),
        num_classes=num_classes,
        train_size=_IMAGES,
        labels=torch.arange(_IMAGES) % max(1, num_classes),
        batch_size=recipe.distill.train.batch_size,
        steps_per_epoch=1,
        epochs=recipe.distill.train.epochs,
    )
    methods: dict[str, Method] = {}
    refused: dict[str, str] = {}
    added: dict[str, int] = {}
    for label, part in recipe.methods.items():
        try:
            with seeded(0, "method", part.name):
                methods[label] = find_method(part.name)(context, **part.arguments)
            _check_method(methods[label], part, recipe, student, teachers)
            shipped = methods[label].ship(student[0])
            added[label] = count_parameters(shipped) - count_parameters(student[0])
        # An absurd argument is found where it is used, such as one that fills the memory.
        except (ValueError, UserError, RuntimeError, ArithmeticError, MemoryError) as error:
            refused[label] = str(error)
        except Exception as error:
            if not user_code.needs_trust(part.name):
                raise
            refused[label] = f"{part.name}: {type(error).__name__}: {error}"
    return methods, refused, added


def _check_method(
    method: Method, part: MethodPart, recipe: Recipe, student: _Network, teachers: list[_Network]
) -> None:
    """Raise where a method cannot tap these networks, or not at the teachers' precision."""
    Tapped(*student, method.student_taps)
    soft = ("logits",) if terms_for(part, recipe).kd else ()
    for network, specs in teachers:
        Tapped(network, specs, method.teacher_taps)
        if recipe.engine.teacher == "int8":
            check_int8(network, specs, (*method.teacher_taps, *soft))
    method.deploy(student[0])

"""Every network and method of a recipe built once, to find those that do not fit each other."""

from dataclasses import dataclass, field

import torch
from torch import nn

from compress import models
from compress.data import IMAGE_SIZES
from compress.distill.module import teacher_context
from compress.errors import UserError
from compress.methods import METHODS
from compress.methods.contract import Context, Method
from compress.models.layout import check_forward
from compress.recipe.schema import MethodPart, Named, Recipe, TapPaths
from compress.seeding import seeded
from compress.stages.distill import terms_for
from compress.stages.fast_teachers import check_int8
from compress.taps import Tapped, TapSpecs
from compress.taps.discovery import discover

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


def probe(recipe: Recipe, num_classes: int = _CLASSES) -> tuple[Shapes | None, list[str]]:
    """Build every network and method; their shapes, None where a network does not fit, and why."""
    networks = _Networks(recipe.data.image_size or IMAGE_SIZES[recipe.data.name], num_classes)
    role = recipe.student
    student = networks.tap(role.model, role.taps, "student", learns=True)
    if student is None or any(part.model is None for part in recipe.teacher):
        # A checkpoint that describes itself is looked at when it is read.
        return None, networks.problems
    tried = [
        (model.name, networks.tap(model, part.taps, "teacher", learns=part.train is not None))
        for part in recipe.teacher
        if (model := part.model) is not None
    ]
    if networks.problems:
        return None, networks.problems
    teachers = [(name, network) for name, network in tried if network is not None]
    methods, refused = _build_methods(recipe, num_classes, student, [n for _, n in teachers])
    shapes = Shapes(
        [(name, specs) for name, (_, specs) in teachers],
        (role.model.name, student[1]),
        methods,
        refused,
    )
    return shapes, [f"distill: {label}: {reason}" for label, reason in refused.items()]


@dataclass
class _Networks:
    """Networks at one image size, each built and tapped once, and what is wrong with them."""

    size: int
    num_classes: int
    problems: list[str] = field(default_factory=list)
    _built: dict[str, _Network] = field(default_factory=dict)

    def tap(self, part: Named, taps: TapPaths, path: str, *, learns: bool) -> _Network | None:
        """Build and tap a network; None where that fails, which is added to the problems."""
        try:
            return self._tap(part, taps, learns=learns)
        except Exception as error:  # whatever a network's own code says of such an input
            self.problems.append(
                f"{path}: {part.name} cannot be used at {self.size} pixels: {error}"
            )
            return None

    def _tap(self, part: Named, taps: TapPaths, *, learns: bool) -> _Network:
        shape = (3, self.size, self.size)
        key = part.model_dump_json() + taps.model_dump_json()
        if key not in self._built:
            network = models.build(part.name, num_classes=self.num_classes, **part.arguments)
            specs = discover(network, shape, part.name, **taps.model_dump())
            self._built[key] = network, specs
        check_forward(self._built[key][0], shape, learns=learns)
        return self._built[key]


def _build_methods(
    recipe: Recipe, num_classes: int, student: _Network, teachers: list[_Network]
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods by label, and why others cannot be built for these networks."""
    context = Context(
        student=student[1],
        teachers=tuple(teacher_context(*teacher) for teacher in teachers),
        num_classes=num_classes,
        train_size=_IMAGES,
        labels=torch.arange(_IMAGES) % num_classes,
        batch_size=recipe.distill.train.batch_size,
        steps_per_epoch=1,
        epochs=recipe.distill.train.epochs,
    )
    methods, refused = {}, {}
    for label, part in recipe.methods.items():
        try:
            with seeded(0, "method", part.name):
                methods[label] = METHODS[part.name](context, **part.arguments)
            _check_method(methods[label], part, recipe, student, teachers)
        except (ValueError, UserError) as error:
            refused[label] = str(error)
    return methods, refused


def _check_method(
    method: Method, part: MethodPart, recipe: Recipe, student: _Network, teachers: list[_Network]
) -> None:
    """Raise where a method cannot tap these networks, or not at the teachers' precision."""
    Tapped(*student, method.student_taps)
    soft = ("logits",) if terms_for(part, recipe.distill).kd else ()
    for network, specs in teachers:
        Tapped(network, specs, method.teacher_taps)
        if recipe.engine.teacher == "int8":
            check_int8(network, specs, (*method.teacher_taps, *soft))
    method.deploy(student[0])

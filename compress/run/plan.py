"""The steps that a recipe means, in their order, and the results that each of them reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from compress.recipe.schema import MethodPart, Recipe, TransferPart
from compress.run import fields

Part = TypeVar("Part")


@dataclass(frozen=True)
class PlannedStep:
    """One piece of work.

    `fields` is what its result depends on besides its stage's version, the recipe's images and the
    results of `inputs` (names of earlier steps). `folder_fields` is what its folder stands for
    where that is less: the parts in the folder know the rest themselves.
    """

    name: str
    arguments: Mapping[str, Any]
    fields: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    folder_fields: Mapping[str, Any] | None = None

    @property
    def stage(self) -> str:
        """`distill` for `distill/kd`."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class RunPlan:
    """Steps in their order; a run directory may hold more than these."""

    steps: Sequence[PlannedStep]


@dataclass(frozen=True)
class RecipePlan(RunPlan):
    """The steps of a recipe: all that its run directory is for."""

    recipe: Recipe


def labelled(recipe: Recipe) -> dict[str, MethodPart]:
    """The methods of a recipe by label; the first is the one that ships."""
    methods = (recipe.distill.method, *recipe.distill.compare)
    return _numbered([(part.label or part.name, part) for part in methods])


def make_plan(recipe: Recipe) -> RecipePlan:
    """Plan a recipe that has been checked."""
    teacher = PlannedStep("teacher", {}, fields.teacher_fields(recipe))
    students = list(_student_steps(recipe))
    sections = _section_steps(recipe, [step.name for step in students])
    return RecipePlan([teacher, *students, *sections, *_transfer_steps(recipe)], recipe)


def _student_steps(recipe: Recipe) -> Iterator[PlannedStep]:
    for trial in range(recipe.trials):
        for label, part in labelled(recipe).items():
            name = f"distill/{label}" + (f"-trial{trial}" if trial else "")
            arguments = {"part": part, "label": label, "trial": trial}
            own = fields.student_fields(recipe, part, trial)
            yield PlannedStep(name, arguments, own, ("teacher",))


def _section_steps(recipe: Recipe, students: list[str]) -> Iterator[PlannedStep]:
    """The stages that have a section of the recipe each, which may be null."""
    main = next(iter(labelled(recipe)))
    everything = ("teacher", *students)
    inputs = {"fuse": everything, "account": everything, "export": (f"distill/{main}",)}
    for section, read in inputs.items():
        if getattr(recipe, section) is not None:
            arguments = {"students": students, "label": main}
            own = fields.section_fields(recipe, section)
            yield PlannedStep(section, arguments, own, read)


def _transfer_steps(recipe: Recipe) -> Iterator[PlannedStep]:
    parts = labelled(recipe)
    main = next(iter(parts))
    named = _numbered([(part.label or part.task, part) for part in recipe.transfer])
    for name, part in named.items():
        seeds = tuple(range(recipe.seed, recipe.seed + part.seeds))
        own, folder = fields.transfer_fields(recipe, name, part)
        used = {main if init in ("distilled", "scratch") else init for init in part.init}
        used = {"none" if label == "alone" else label for label in used}
        teacher = ("teacher",) if "teacher" in used else ()
        inputs = (*teacher, *(f"distill/{label}" for label in parts if label in used))
        arguments = transfer_arguments(
            part, part.data.model_dump(), part.own_arguments, main=main, seeds=seeds
        )
        yield PlannedStep(f"transfer/{name}", arguments, own, inputs, folder)


def transfer_arguments(
    part: TransferPart,
    data: Mapping[str, Any],
    own: Mapping[str, Any],
    *,
    main: str,
    seeds: tuple[int, ...],
    **more: Any,
) -> dict[str, Any]:
    """The arguments of a transfer step's job.

    Args:
        data: {"name", **arguments} of the data set.
        own: the task's own arguments.
        main: the label of the student that ships.
        more: `students` (label -> origin) where they are not those of the run directory, and
            `allow_partial`.
    """
    given = {"task": part.task, "data": data, "init": tuple(part.init), "train": part.train}
    return {**given, "arguments": own, "main": main, "seeds": seeds, **more}


def _numbered(named: Sequence[tuple[str, Part]]) -> dict[str, Part]:
    """Parts by name; a name that stands twice gets a number."""
    numbered: dict[str, Part] = {}
    for name, part in named:
        unique, number = name, 2
        while unique in numbered:
            unique, number = f"{name}-{number}", number + 1
        numbered[unique] = part
    return numbered

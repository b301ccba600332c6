"""The steps that a recipe means, in their order, and the results that each of them reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress.recipe.schema import MethodPart, Recipe, TransferPart
from compress.stages import task_of
from compress.stages.distill import reads_teachers


@dataclass(frozen=True)
class PlannedStep:
    """One piece of work: the arguments of its job, the earlier steps whose results it reads.

    `chosen_from` are the steps whose results decide which student it is for; while one of them is
    not finished nobody knows, and all of them are its inputs.
    """

    name: str
    arguments: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    chosen_from: tuple[str, ...] = ()

    def for_student(self, label: str, remark: str | None) -> "PlannedStep":
        """The step once its student is known: it reads that one's training alone."""
        arguments = {**self.arguments, "label": label, "remark": remark}
        return replace(self, arguments=arguments, inputs=(f"distill/{label}",), chosen_from=())

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


def make_plan(recipe: Recipe) -> RecipePlan:
    """Plan a recipe that has been checked."""
    students = list(_student_steps(recipe))
    sections = _section_steps(recipe, [step.name for step in students])
    teacher = PlannedStep("teacher", {})
    return RecipePlan([teacher, *students, *sections, *_transfer_steps(recipe)], recipe)


def _student_steps(recipe: Recipe) -> Iterator[PlannedStep]:
    # Without classes every student is judged by its teacher.
    is_judged_by_teacher = not task_of(recipe).has_classes

    def needs_teachers(part: MethodPart) -> bool:
        return is_judged_by_teacher or reads_teachers(part, recipe)

    for trial in range(recipe.trials):
        for label, part in recipe.methods.items():
            name = f"distill/{label}" + (f"-trial{trial}" if trial else "")
            arguments = {"part": part, "label": label, "trial": trial}
            yield PlannedStep(name, arguments, ("teacher",) if needs_teachers(part) else ())


def _section_steps(recipe: Recipe, students: list[str]) -> Iterator[PlannedStep]:
    """The stages that have a section of the recipe each, which may be null."""
    for section in ("fuse", "account"):
        if getattr(recipe, section) is not None:
            yield PlannedStep(section, {"students": students}, ("teacher", *students))
    if recipe.export is not None:
        # The smaller of equal students ships, and `account` counts them.
        read = (*students, *(["account"] if recipe.account is not None else []))
        arguments = {"labels": list(recipe.methods), "wished": recipe.export.student}
        yield PlannedStep("export", arguments, read, chosen_from=read)


def _transfer_steps(recipe: Recipe) -> Iterator[PlannedStep]:
    labels = list(recipe.methods)
    main = labels[0]
    for name, part in recipe.transfer_entries.items():
        used = {main if init in ("distilled", "scratch") else init for init in part.init}
        used = {"none" if label == "alone" else label for label in used}
        teacher = ("teacher",) if "teacher" in used else ()
        inputs = (*teacher, *(f"distill/{label}" for label in labels if label in used))
        arguments = transfer_arguments(
            part,
            data=part.data.model_dump(),
            own=part.own_arguments,
            main=main,
            seeds=tuple(range(recipe.seed, recipe.seed + part.seeds)),
        )
        yield PlannedStep(f"transfer/{name}", arguments, inputs)


def transfer_arguments(
    part: TransferPart,
    *,
    data: Mapping[str, Any],
    own: Mapping[str, Any],
    main: str,
    seeds: tuple[int, ...],
    **command: Any,
) -> dict[str, Any]:
    """The arguments of a transfer step's job.

    Args:
        data: {"name", **arguments} of the data set.
        own: the task's own arguments.
        main: the label of the recipe's main method, whether or not it ships.
        command: of a step of no recipe: `students` (label -> where it is), `allow_partial`, and
            `origins` (init -> label of its student, digest of all that it takes from there).
    """
    arguments = {"task": part.task, "data": data, "init": tuple(part.init), "train": part.train}
    return {**arguments, "arguments": own, "main": main, "seeds": seeds, **command}

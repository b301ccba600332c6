"""The steps of a plan in a run directory: run, skipped, redone or restored.

Of several processes all train and evaluate. The first alone decides what is to be done, runs the
other stages and writes, while the rest wait for it.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from compress.comparison.students import TOP1, ShippedStudent, choose_shipped
from compress.console.ending import doing
from compress.console.messages import log
from compress.distributed.collectives import on_main_process, world_size
from compress.engine.lockstep import drain, in_lockstep
from compress.engine.loop import Position
from compress.environment import environment
from compress.errors import UserError
from compress.recipe.schema import Recipe
from compress.run.directory import RunDirectory
from compress.run.fields import StepFields, recipe_fingerprint, step_fields
from compress.run.plan import PlannedStep, RecipePlan, RunPlan, make_plan
from compress.run.skipping import Files, can_skip, require_undamaged
from compress.run.stages import StageTable
from compress.stages import dataset_of, order_seed, task_of
from compress.stages.job import Job, Outcome, StepJob
from compress.storage.results import read_result


class Progress:
    """Progress of a plan in a run directory: the digest of each step whose result is there.

    Knows every step's fields, since these hold the results of the steps before it.
    """

    def __init__(self, plan: RunPlan, stages: StageTable, directory: RunDirectory) -> None:
        self.plan = plan
        self.stages = stages
        self.directory = directory
        self.digests: dict[str, str] = {}
        self._images = dataset_of(plan.recipe).digest() if isinstance(plan, RecipePlan) else None
        self._fields: dict[str, StepFields] = {}
        self._resolved: dict[str, PlannedStep] = {}

    def resolve(self, step: PlannedStep) -> PlannedStep:
        """The step with its student, once the results that decide which one are all there."""
        if not step.chosen_from or any(name not in self.digests for name in step.chosen_from):
            return step
        if step.name not in self._resolved:
            choice = on_main_process(partial(self._choose, step))
            self._resolved[step.name] = step.for_student(choice.label, choice.remark)
        return self._resolved[step.name]

    def _choose(self, step: PlannedStep) -> ShippedStudent:
        folder, arguments = self.directory.folder, step.arguments
        results = {name: read_result(folder, name) for name in step.chosen_from}
        metric = task_of(self.plan.recipe).metric if isinstance(self.plan, RecipePlan) else TOP1
        return choose_shipped(folder, results, arguments["labels"], arguments["wished"], metric)

    def fields(self, step: PlannedStep) -> StepFields:
        """The fields of a step, computed once the steps that it reads are finished."""
        step = self.resolve(step)
        if step.name not in self._fields:
            fields = step_fields(
                self.plan,
                step,
                version=self.stages.version(step.stage),
                images=self._images,
                inputs={name: self.digests.get(name) for name in step.inputs},
            )
            self._fields[step.name] = self._as_begun(step, fields)
        return self._fields[step.name]

    def _as_begun(self, step: PlannedStep, fields: StepFields) -> StepFields:
        """The fields of a student that reads no teacher, as its folder names them.

        Earlier versions counted the teacher among what every student depends on.
        """
        if step.stage != "distill" or step.inputs:
            return fields
        before = self.directory.fields_of(step.name)
        now = json.loads(json.dumps(fields.result))
        if before is None or {**before, "inputs": {}} != now:
            return fields
        return StepFields(before, before)

    def is_finished(self, step: PlannedStep) -> bool:
        """Whether a step's result is there, for all that it depends on.

        Raises:
            UserError: the result, or a file that it vouches for, is damaged.
        """
        is_finished = self.directory.is_finished(step.name, self.fields(step).result)
        if is_finished:
            require_undamaged(self.directory, step.name, self._files(step))
        return is_finished

    def can_be_skipped(self, step: PlannedStep) -> bool:
        """Whether a step is finished; what is damaged of it is put aside and made again."""
        fields = self.fields(step)
        files = self._files(step)
        return can_skip(self.directory, step.name, fields.result, files, fields.folder)

    def finish(self, step: PlannedStep, outcome: Outcome) -> None:
        """Write a step's result, with a record of the files that it vouches for."""
        files = self._files(step)(self.directory.stage_folder(step.name), outcome.values)
        self.directory.finish(step.name, self.fields(step).result, outcome, files)

    def _files(self, step: PlannedStep) -> Files:
        files: Files = self.stages.load(step.stage).files
        return files

    def note(self, step: PlannedStep) -> None:
        """Read the result of a finished step, which those after it depend on."""
        self.digests[step.name] = on_main_process(
            lambda: self.directory.digest_of_result(step.name)
        )


def _do_nothing(_finished: list[str]) -> None:
    """What nobody waits for."""


@dataclass(frozen=True)
class Executor:
    """Runs a plan: where and how.

    `fresh` names stages or steps to be redone, `until` the last one to run. `lockstep_values` is
    what runs that take turns in one process have in common, see `Job`. `after_step` is called with
    the names of the finished steps after each of them.
    """

    plan: RunPlan
    stages: StageTable
    directory: RunDirectory
    device: torch.device
    workers: int = 2
    fresh: Sequence[str] = ()
    until: str | None = None
    lockstep_values: dict[Any, Any] = field(default_factory=dict)
    after_step: Callable[[list[str]], None] = _do_nothing

    def steps(self) -> Generator[Position, None, list[str]]:
        """Run the plan, stopping before each training step of a student.

        Returns:
            The steps whose results belong to the recipe as it is.
        """
        progress, every = Progress(self.plan, self.stages, self.directory), self.plan.steps
        if self._recipe is not None:
            names = [step.name for step in every]
            on_main_process(lambda: self.directory.shelve_unplanned(names))
        last = max(i for i, s in enumerate(every) if self.until in (None, s.name, s.stage))
        for group in self._groups(every[: last + 1]):
            tasks = [self._step(step, progress) for step in group]
            with doing(", ".join(step.name for step in group)):
                yield from in_lockstep(tasks) if len(tasks) > 1 else tasks[0]
            for step in group:
                progress.note(step)
            self.after_step(list(progress.digests))
        if self.until is not None:
            log(f"stopped after {self.until}, as asked")
        for step in every[last + 1 :]:
            if on_main_process(partial(_is_whole, progress, step)):
                progress.note(step)
        return list(progress.digests)

    @property
    def _recipe(self) -> Recipe | None:
        return self.plan.recipe if isinstance(self.plan, RecipePlan) else None

    def run(self) -> list[str]:
        """Run the plan to its end; returns what `steps` does."""
        return drain(self.steps())

    def _groups(self, steps: Sequence[PlannedStep]) -> list[list[PlannedStep]]:
        """Steps that are done in lockstep: students of the same batches that share a teacher."""
        recipe = self._recipe

        def key(numbered: tuple[int, PlannedStep]) -> tuple[str, int]:
            number, step = numbered
            if recipe is not None and recipe.engine.share_teacher and step.stage == "distill":
                return "students", order_seed(recipe, step.arguments["trial"])
            return "step", number

        grouped = groupby(enumerate(steps), key=key)
        return [[step for _, step in group] for _, group in grouped]

    def _step(self, step: PlannedStep, progress: Progress) -> Generator[Position, None, None]:
        step = progress.resolve(step)
        if not on_main_process(partial(self._prepare, step, progress)):
            return
        job = self._job(step, progress.fields(step).folder)
        start, clock = time.perf_counter(), list[float]()
        stage = self.stages.load(step.stage)
        outcome: Outcome
        if hasattr(stage, "learn"):
            outcome = yield from _timed(stage.learn(job), clock)
        elif stage.IN_EVERY_PROCESS:
            outcome = stage.run(job)
        else:
            outcome = on_main_process(lambda: stage.run(job))
        # Of students in lockstep each has the time of its own steps; the teacher's is the first's.
        seconds = clock[0] if clock else time.perf_counter() - start
        measured = {
            **outcome.measured,
            "seconds": seconds,
            "processes": world_size(),
            "environment": environment(self.device),
        }
        on_main_process(lambda: progress.finish(step, Outcome(outcome.values, measured)))
        log(f"{step.name}: {seconds:.1f} s")

    def _job(self, step: PlannedStep, fields: Mapping[str, Any]) -> StepJob:
        common: dict[str, Any] = {
            "name": step.name,
            "folder": self.directory.stage_folder(step.name),
            "run_folder": self.directory.folder,
            "arguments": step.arguments,
            "device": self.device,
            "workers": self.workers,
            "fields": fields,
            "fresh": self._is_fresh(step),
        }
        recipe = self._recipe
        if recipe is None:
            return StepJob(**common)
        lockstep_values = self.lockstep_values if recipe.engine.share_teacher else None
        fingerprint = recipe_fingerprint(recipe)
        return Job(
            **common, recipe=recipe, recipe_fingerprint=fingerprint, lockstep_values=lockstep_values
        )

    def _prepare(self, step: PlannedStep, progress: Progress) -> bool:
        """Decide whether to skip, resume or redo a step; return True if it must run."""
        fresh, fields = self._is_fresh(step), progress.fields(step).folder
        if not fresh and progress.can_be_skipped(step):
            log(f"{step.name}: done before, skipped")
            return False
        self.directory.make_room(step.name, fields, restart=fresh, restore=not fresh)
        if not fresh and progress.can_be_skipped(step):
            return False  # it was brought back
        log(f"{step.name}")
        self.directory.begin(step.name, fields)
        return True

    def _is_fresh(self, step: PlannedStep) -> bool:
        return step.name in self.fresh or step.stage in self.fresh


def _is_whole(progress: Progress, step: PlannedStep) -> bool:
    """Whether a step that is not run now was finished before; damage is reported only."""
    try:
        return progress.is_finished(step)
    except UserError as error:
        log(f"{step.name}: {error}")
        return False


def _timed(
    steps: Generator[Position, None, Outcome], clock: list[float]
) -> Generator[Position, None, Outcome]:
    """The same steps; `clock` holds the seconds that they took, without what is done between."""
    clock.append(0.0)
    while True:
        start = time.perf_counter()
        try:
            position = next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        finally:
            clock[0] += time.perf_counter() - start
        yield position


def is_finished(recipe: Recipe, stages: StageTable, folder: Path, until: str | None = None) -> bool:
    """Whether a run directory holds the result of every stage (up to one) of a checked recipe.

    Raises:
        UserError: a result, or a file that it vouches for, is damaged.
    """
    plan = make_plan(recipe)
    progress = Progress(plan, stages, RunDirectory(folder, folder.name))
    for step in plan.steps:
        if not progress.is_finished(step):
            return False
        progress.note(step)
        if until in (step.name, step.stage):
            break
    return True

"""The steps of a plan in a run directory: run, skipped, redone or restored.

Of several processes all train and evaluate. The first alone decides what is to be done, runs the
other stages and writes, while the rest wait for it.
"""

import importlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from compress.console.messages import log
from compress.distributed.collectives import on_main_process, world_size
from compress.engine.lockstep import in_lockstep
from compress.engine.loop import Position
from compress.environment import environment
from compress.errors import UserError, doing
from compress.recipe.schema import Recipe
from compress.run import plan
from compress.run.directory import RunDirectory
from compress.run.plan import Plan, Step
from compress.run.skipping import Files, require_undamaged, stands
from compress.stages import dataset_of, order_seed
from compress.stages.job import Job, Outcome
from compress.storage.fingerprints import fingerprint_of
from compress.storage.results import read_result

# The stages in which every process takes its part.
_SHARED = ("teacher", "distill", "transfer")


@dataclass(frozen=True)
class Run:
    """A plan and where and how it is carried out.

    `fresh` names stages or steps to be redone, `until` the last one to run. `companions` is what
    runs that take turns in one process have in common, see `Job`.
    """

    planned: Plan
    directory: RunDirectory
    device: torch.device
    workers: int = 2
    fresh: Sequence[str] = ()
    until: str | None = None
    companions: dict[Any, Any] = field(default_factory=dict)

    def steps(self) -> Generator[Position, None, list[str]]:
        """Carry the plan out, stopping before each training step of a student.

        Returns:
            The steps whose results belong to the recipe as it is.
        """
        data_digest = dataset_of(self.planned.recipe).digest()
        every = self.planned.steps
        on_main_process(lambda: self.directory.shelve_unplanned([step.name for step in every]))
        last = max(i for i, s in enumerate(every) if self.until in (None, s.name, s.stage))
        digests: dict[str, str] = {}
        for group in self._groups(every[: last + 1]):
            each = [_fields(step, data_digest, digests) for step in group]
            tasks = [self._step(step, own) for step, own in zip(group, each, strict=True)]
            with doing(", ".join(step.name for step in group)):
                yield from in_lockstep(tasks) if len(tasks) > 1 else tasks[0]
            for step in group:
                digests[step.name] = on_main_process(partial(_found, self.directory, step))
        if self.until is not None:
            log(f"stopped after {self.until}, as asked")
        for step in every[last + 1 :]:
            fields = _fields(step, data_digest, digests)
            if on_main_process(partial(self._is_shown, step, fields)):
                digests[step.name] = on_main_process(partial(_found, self.directory, step))
        return list(digests)

    def _is_shown(self, step: Step, fields: dict[str, Any]) -> bool:
        """Whether a step that is not run now was finished before, and is whole."""
        try:
            return _is_finished(self.directory, step, fields)
        except UserError as error:
            log(f"{step.name}: {error}")
            return False

    def _groups(self, steps: Sequence[Step]) -> list[list[Step]]:
        """Steps that are done together: students of the same batches where they share a teacher."""
        recipe = self.planned.recipe

        def together(numbered: tuple[int, Step]) -> tuple[str, int]:
            number, step = numbered
            if step.stage == "distill" and recipe.engine.share_teacher:
                return "students", order_seed(recipe, step.arguments["trial"])
            return "step", number

        grouped = groupby(enumerate(steps), key=together)
        return [[step for _, step in group] for _, group in grouped]

    def _step(self, step: Step, fields: dict[str, Any]) -> Generator[Position, None, None]:
        if not on_main_process(partial(self._prepare, step, fields)):
            return
        recipe = self.planned.recipe
        job = Job(
            name=step.name,
            folder=self.directory.stage_folder(step.name),
            run_folder=self.directory.folder,
            recipe=recipe,
            arguments=step.arguments,
            device=self.device,
            workers=self.workers,
            recipe_fingerprint=_recipe_fingerprint(recipe),
            companions=self.companions if recipe.engine.share_teacher else None,
            fields=_begun(step, fields),
            fresh=self._is_fresh(step),
        )
        start, clock = time.perf_counter(), list[float]()
        stage = importlib.import_module(step.module)
        outcome: Outcome
        if step.stage == "distill":
            outcome = yield from _timed(stage.learn(job), clock)
        elif step.stage in _SHARED:
            outcome = stage.run(job)
        else:
            outcome = on_main_process(lambda: stage.run(job))
        # Of students side by side each has the time of its own steps; the teacher's is the first's.
        seconds = clock[0] if clock else time.perf_counter() - start
        told = {
            "seconds": seconds,
            "processes": world_size(),
            "environment": environment(self.device),
        }
        done = Outcome(outcome.values, {**outcome.measured, **told})
        on_main_process(
            lambda: self.directory.finish(
                step.name, fields, done, stage.files(job.folder, done.values)
            )
        )
        log(f"{step.name}: {seconds:.1f} s")

    def _prepare(self, step: Step, fields: dict[str, Any]) -> bool:
        """Skip, redo or restore a step; whether it is to be run, in a folder that is then begun."""
        run, begun = self.directory, _begun(step, fields)
        fresh, files = self._is_fresh(step), _files(step)
        if not fresh and stands(run, step.name, fields, files, begun):
            log(f"{step.name}: done before, skipped")
            return False
        differences = run.differences(step.name, begun)
        if fresh or differences:
            reason = "--fresh" if fresh else "changed: " + ", ".join(differences)
            old = run.supersede(step.name)
            if old is not None:
                log(f"{step.name}: redone ({reason}); the old result is in {old}")
        if not fresh and not run.stage_folder(step.name).exists() and run.restore(step.name, begun):
            log(f"{step.name}: what was done earlier fits again, restored")
            if stands(run, step.name, fields, files, begun):
                return False
        log(f"{step.name}")
        run.begin(step.name, begun)
        return True

    def _is_fresh(self, step: Step) -> bool:
        return step.name in self.fresh or step.stage in self.fresh


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


def finished(recipe: Recipe, folder: Path, until: str | None = None) -> bool:
    """Whether a run directory holds the result of every stage (up to one) of a checked recipe.

    Raises:
        UserError: a result, or a file that it vouches for, is damaged.
    """
    planned = plan.make_plan(recipe)
    run = RunDirectory(folder, folder.name)
    data_digest = dataset_of(recipe).digest()
    digests: dict[str, str] = {}
    for step in planned.steps:
        if not _is_finished(run, step, _fields(step, data_digest, digests)):
            return False
        digests[step.name] = _found(run, step)
        if until in (step.name, step.stage):
            break
    return True


def _is_finished(run: RunDirectory, step: Step, fields: dict[str, Any]) -> bool:
    is_finished = run.finished(step.name, fields)
    if is_finished:
        require_undamaged(run, step.name, _files(step))
    return is_finished


def _files(step: Step) -> Files:
    """What a step's stage vouches for."""
    files: Files = importlib.import_module(step.module).files
    return files


def _fields(step: Step, data_digest: str, digests: dict[str, str]) -> dict[str, Any]:
    """Everything that a step's result depends on."""
    return {
        "version": step.version,
        **step.fields,
        "images": data_digest,
        "inputs": {name: digests.get(name) for name in step.inputs},
    }


def _begun(step: Step, fields: dict[str, Any]) -> dict[str, Any]:
    """What a step's folder is begun for: everything, unless parts of it stand for themselves."""
    return fields if step.begun is None else {"version": step.version, **step.begun}


def _found(run: RunDirectory, step: Step) -> str:
    """What follows a step depends on what was found there, not only on what was asked for."""
    found = read_result(run.folder, step.name)
    return fingerprint_of({k: found[k] for k in ("fingerprint", "values")})


def _recipe_fingerprint(recipe: Recipe) -> str:
    """Names the recipe in model files; where the data lie does not matter."""
    content = recipe.model_dump(mode="json")
    content["data"].pop("root", None)
    del content["trackers"]
    for how in ("compile", "share_teacher", "cache"):
        del content["engine"][how]
    return fingerprint_of(content)

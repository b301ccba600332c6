"""A recipe's command: check, plan, run and report; what `compress.pipeline` hands over to.

Everything that a recipe may need is imported here, which takes seconds.
"""

import importlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from compress.console.ending import doing, stop_sentence
from compress.console.messages import log, log_to, note
from compress.console.terminal import console
from compress.distributed.collectives import on_main_process, world_size
from compress.engine.lockstep import drain
from compress.engine.loop import Position
from compress.environment import environment
from compress.errors import UserError, nearest
from compress.models import user_code
from compress.recipe.command_line import RecipeRequest, list_problems, read_request
from compress.recipe.schema import Recipe
from compress.run import preview
from compress.run.checks import check_values
from compress.run.directory import RunDirectory
from compress.run.executor import Executor
from compress.run.launch import launch, say_once, usable_device
from compress.run.plan import RecipePlan, make_plan
from compress.run.probe import Shapes, can_be_built, probe
from compress.run.schema import schema
from compress.run.stages import StageTable
from compress.stages import dataset_of
from compress.storage.files import write_json, write_text
from compress.teacher.settings import check_arithmetic
from compress.trackers import track_to

_REPORT_AGE = 60.0  # seconds after which the report of a run that goes on is written again


def main(read: Callable[[], RecipeRequest], stages: StageTable) -> int:
    """Run the whole command, in each of the processes that torchrun started."""
    return launch(read, lambda request: _command(request, stages))


def run_steps(
    arguments: list[str], stages: StageTable, lockstep_values: dict[Any, Any]
) -> Generator[Position, None, None]:
    """The command as a generator that stops before each training step of a student.

    Args:
        arguments: the command's, without its name.
        lockstep_values: what all runs that take turns with it have in common, empty at first.

    Raises:
        UserError: also written to the run's log.
    """
    request = read_request(arguments)
    device = usable_device(request.options.device)
    plan, _ = _checked_plan(request, stages, device)
    yield from _run(request, plan, stages, device, lockstep_values)


def _command(request: RecipeRequest, stages: StageTable) -> int:
    if request.values is None:
        on_main_process(lambda: print(json.dumps(schema(stages), indent=2)))
        return 0
    device = usable_device(request.options.device)
    plan, shapes = _checked_plan(request, stages, device)
    check_arithmetic(plan.recipe.engine.teacher, device)
    if request.options.check:
        options = request.options
        on_main_process(
            lambda: preview.show(
                plan,
                shapes,
                stages,
                run_folder(request),
                device,
                options.workers,
                verbose=options.verbose,
                timing=options.timing,
            )
        )
        return 0
    drain(_run(request, plan, stages, device, {}))
    return 0


def _checked_plan(
    request: RecipeRequest, stages: StageTable, device: torch.device
) -> tuple[RecipePlan, Shapes | None]:
    """The plan of a request's recipe, and the shapes of its networks.

    Raises:
        UserError: with every problem of the recipe, or of the stages that options name.
    """
    options, shapes = request.options, None
    recipe, problems = check_values(request.values or {}, stages)
    if recipe is not None and not any(problem.startswith("data") for problem in problems):
        try:
            dataset_of(recipe)
        except UserError as error:
            problems.append(str(error))
    if recipe is not None and can_be_built(problems):
        for name in ("*",) if options.trust_code else (*_named(recipe), *options.trust_name):
            user_code.trust(name)
        shapes, misfits = probe(recipe, device=device)
        problems += misfits
    if recipe is None or problems:
        raise UserError(list_problems(options.recipe, problems))
    plan = make_plan(recipe)
    for name in (*options.fresh, *([options.until] if options.until else [])):
        _check_stage(name, plan)
    return plan, shapes


def _run(
    request: RecipeRequest,
    plan: RecipePlan,
    stages: StageTable,
    device: torch.device,
    lockstep_values: dict[Any, Any],
) -> Generator[Position, None, None]:
    recipe, options = plan.recipe, request.options
    name: str = options.recipe.stem
    folder = run_folder(request)
    _refuse_own_teacher(recipe, folder)
    directory = RunDirectory(folder, name)
    with directory.open(), log_to(folder / "log.txt"):
        write_text(folder / "recipe.yaml", options.recipe.read_text(encoding="utf-8"))
        resolved = recipe.model_dump(mode="json")
        write_text(folder / "resolved.yaml", yaml.safe_dump(resolved, sort_keys=False))
        write_json(folder / "environment.json", environment(device))
        among = f", {world_size()} processes" if world_size() > 1 else ""
        log(f"{options.recipe} -> {folder} ({device}{among})")
        reports = _Reports(directory, plan)
        executor = Executor(
            plan,
            stages,
            directory,
            device,
            options.workers,
            options.fresh,
            options.until,
            lockstep_values,
            reports.keep_up,
        )
        with _failure_noted():
            with track_to(recipe.trackers, folder, str(folder), resolved):
                current = yield from executor.steps()
            with doing("the report"):
                on_main_process(lambda: reports.finish(current))


def run_folder(request: RecipeRequest) -> Path:
    """The run directory that a command line names."""
    options = request.options
    folder: Path = options.out or Path("runs") / options.recipe.stem
    return folder


@contextmanager
def _failure_noted() -> Iterator[None]:
    """Write why the block ended early to the run's log, too."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as end:
        message = f"error: {end}" if isinstance(end, UserError) else stop_sentence(end)
        say_once(lambda: note(message), "log")
        raise


def _named(recipe: Recipe) -> list[str]:
    """The networks and methods that the recipe names: their code is its user's choice."""
    networks = [recipe.student.model, *(teacher.model for teacher in recipe.teacher)]
    parts = [*networks, *recipe.methods.values()]
    return [part.name for part in parts if part is not None]


def _refuse_own_teacher(recipe: Recipe, folder: Path) -> None:
    """A teacher inside this run's own teacher folder would be moved aside before it is read."""
    own = (folder / "teacher").resolve()
    for teacher in recipe.teacher:
        given = teacher.checkpoint or teacher.weights or teacher.logits_file
        if given is not None and own in Path(given).resolve().parents:
            raise UserError(
                f"teacher: '{given}' lies inside this very run directory; copy it elsewhere or "
                "choose another directory with --out"
            )


def _check_stage(name: str, plan: RecipePlan) -> None:
    known = list(dict.fromkeys(n for s in plan.steps for n in (s.stage, s.name)))
    if name not in known:
        raise UserError(
            f"unknown stage '{name}'; this recipe has {', '.join(known)}{nearest(name, known)}"
        )


class _Reports:
    """The report of a run, while it goes on and at its end."""

    def __init__(self, run: RunDirectory, plan: RecipePlan) -> None:
        self._run = run
        self._plan = plan
        self._written = time.monotonic()

    def keep_up(self, finished: list[str]) -> None:
        """Write what there is, unless that was done lately or the whole report follows."""
        is_old = time.monotonic() - self._written > _REPORT_AGE
        if not is_old or self._plan.steps[-1].name in finished:
            return
        with doing("the report"):
            on_main_process(partial(self._write_so_far, finished))
        self._written = time.monotonic()

    def finish(self, finished: list[str]) -> None:
        """Write the report and print its tables."""
        page = self._write(finished)
        reporting = importlib.import_module("compress.reporting")
        for table in reporting.terminal_tables(self._run.folder):
            console.print(table)
        log(f"report: {page}")

    def _write(self, finished: list[str]) -> Path:
        self._run.mark_current(finished)
        reporting = importlib.import_module("compress.reporting")
        images = dataset_of(self._plan.recipe).test
        page: Path = reporting.write_report(self._run.folder, images)
        return page

    def _write_so_far(self, finished: list[str]) -> None:
        try:
            log(f"report so far: {self._write(finished)}")
        except Exception as error:  # a run goes on without it, and ends with the whole one
            log(f"the report cannot be written yet: {error}")

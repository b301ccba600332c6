"""A recipe carried out: checked, planned, run and reported; what `compress.pipeline` hands over to.

Everything that a recipe may need is imported here, which takes seconds.
"""

import argparse
import importlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import yaml

from compress.console.messages import log, log_to, note
from compress.console.terminal import console
from compress.distributed.collectives import on_main_process, world_size
from compress.engine.lockstep import drain
from compress.engine.loop import Position
from compress.environment import environment
from compress.errors import UserError, doing, nearest, stop_sentence
from compress.models import user_code
from compress.recipe.command_line import listed, parser, values_of
from compress.recipe.schema import Recipe
from compress.run import checks, plan, preview
from compress.run.checks import Shapes
from compress.run.directory import RunDirectory
from compress.run.executor import Run
from compress.run.launch import reported, say_once, started, usable_device
from compress.run.plan import Plan
from compress.storage.files import write_json, write_text
from compress.teacher.settings import check_arithmetic
from compress.trackers import track_to


def main(arguments: list[str] | None) -> int:
    """The whole command, in each of the processes that torchrun started."""
    with started():
        return reported(lambda: _command(on_main_process(lambda: parser().parse_args(arguments))))


def _command(options: argparse.Namespace) -> int:
    if options.schema:
        on_main_process(lambda: print(json.dumps(plan.schema(), indent=2)))
        return 0
    device = usable_device(options.device)
    planned, shapes = _planned(options, device)
    check_arithmetic(planned.recipe.engine.teacher, device)
    if options.check:
        on_main_process(lambda: preview.show(planned, shapes))
        return 0
    drain(_running(options, planned, device, {}))
    return 0


def run_steps(arguments: list[str], companions: dict[Any, Any]) -> Generator[Position, None, None]:
    """The command as a generator that stops before each training step of a student.

    Args:
        arguments: the command's, without its name.
        companions: what all runs that take turns with it have in common, empty at first.

    Raises:
        UserError: also written to the run's log.
    """
    options = parser().parse_args(arguments)
    device = usable_device(options.device)
    planned, _ = _planned(options, device)
    yield from _running(options, planned, device, companions)


def _planned(options: argparse.Namespace, device: torch.device) -> tuple[Plan, Shapes | None]:
    """The checked recipe's plan, and the shapes of its networks."""
    recipe, problems = checks.recipe_from(values_of(options))
    shapes = None
    if recipe is not None and checks.can_be_built(problems):
        for name in ("*",) if options.trust_code else (*_models(recipe), *options.trust_name):
            user_code.trust(name)
        shapes, misfits = checks.probe(recipe, device=device)
        problems += misfits
    if recipe is None or problems:
        raise UserError(listed(options.recipe, problems))
    planned = plan.make_plan(recipe)
    for name in (*options.fresh, *([options.until] if options.until else [])):
        _check_stage(name, planned)
    return planned, shapes


def _running(
    options: argparse.Namespace,
    planned: Plan,
    device: torch.device,
    companions: dict[Any, Any],
) -> Generator[Position, None, None]:
    recipe, folder = planned.recipe, options.out or Path("runs") / options.recipe.stem
    _refuse_own_teacher(recipe, folder)
    directory = RunDirectory(folder, options.recipe.stem)
    with directory.open(), log_to(folder / "log.txt"):
        write_text(folder / "recipe.yaml", options.recipe.read_text(encoding="utf-8"))
        resolved = recipe.model_dump(mode="json")
        write_text(folder / "resolved.yaml", yaml.safe_dump(resolved, sort_keys=False))
        write_json(folder / "environment.json", environment(device))
        among = f", {world_size()} processes" if world_size() > 1 else ""
        log(f"{options.recipe} -> {folder} ({device}{among})")
        run = Run(
            planned, directory, device, options.workers, options.fresh, options.until, companions
        )
        try:
            with track_to(recipe.trackers, folder, str(folder), resolved):
                current = yield from run.steps()
            with doing("the report"):
                on_main_process(lambda: _report(directory, current))
        except UserError as error:
            message = f"error: {error}"
            say_once(lambda: note(message), "log")
            raise
        except KeyboardInterrupt as stop:
            sentence = stop_sentence(stop)
            say_once(lambda: note(sentence), "log")
            raise


def _models(recipe: Recipe) -> list[str]:
    """The networks that the recipe names: their code is its user's choice."""
    parts = [recipe.student.model, *(teacher.model for teacher in recipe.teacher)]
    return [part.name for part in parts if part is not None]


def _refuse_own_teacher(recipe: Recipe, folder: Path) -> None:
    """A teacher inside this run's own teacher folder would be moved aside before it is read."""
    own = (folder / "teacher").resolve()
    for teacher in recipe.teacher:
        given = teacher.checkpoint or teacher.weights
        if given is not None and own in Path(given).resolve().parents:
            raise UserError(
                f"teacher: '{given}' lies inside this very run directory; copy it elsewhere or "
                "choose another directory with --out"
            )


def _check_stage(name: str, planned: Plan) -> None:
    known = list(dict.fromkeys(n for s in planned.steps for n in (s.stage, s.name)))
    if name not in known:
        raise UserError(
            f"unknown stage '{name}'; this recipe has {', '.join(known)}{nearest(name, known)}"
        )


def _report(run: RunDirectory, current: list[str]) -> None:
    run.mark_current(current)
    reporting = importlib.import_module("compress.reporting")
    report = reporting.write_report(run.folder)
    console.print(reporting.terminal_table(run.folder))
    log(f"report: {report}")

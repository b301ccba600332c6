"""The command: run or skip each planned stage of a recipe, then point at the report.

python -m compress.pipeline RECIPE.yaml [--set key.path=value] [--out DIR] [--until STAGE]
                            [--check] [--fresh STAGE] [--device D] [--schema]
torchrun --nproc-per-node N -m compress.pipeline RECIPE.yaml ...
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import yaml

from compress import checks, plan, preview
from compress.artifacts import RunDirectory, write_json, write_text
from compress.checks import Shapes
from compress.console import console, log, log_to, note
from compress.environment import environment
from compress.errors import UserError, exit_code, nearest
from compress.launch import say_once, started, usable_device
from compress.models import user_code
from compress.plan import Plan
from compress.ranks import by_first, world
from compress.recipe import Recipe, check_shape
from compress.recipe_files import apply_override, read_yaml
from compress.running import Run
from compress.trackers import track_to
from compress.training import Position, drained


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 user error, 130 interrupted)."""
    with started():
        return reported(lambda: _command(by_first(lambda: _parser().parse_args(arguments))))


def reported(command: Callable[[], int]) -> int:
    """The exit code of a command that can be continued; mistakes are told on the console, once."""

    def stoppable() -> int:
        try:
            return command()
        except KeyboardInterrupt:
            words = "interrupted; run the same command again to continue where it stopped"
            say_once(lambda: console.print(words))
            return 130

    return exit_code(stoppable, lambda message: say_once(lambda: _tell(message)))


def _tell(message: str) -> None:
    console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.pipeline",
        description="Run a recipe: teacher, distill, fuse, account, export, transfer, report.",
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a YAML file, see pipelines/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="change one value of the recipe; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="the run directory (default: runs/RECIPE NAME)")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--fresh",
        action="append",
        default=[],
        metavar="STAGE",
        help="redo this stage, and what follows where its result differs; the old one is kept",
    )
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that a model file names"
    )
    parser.add_argument("--check", action="store_true", help="check the recipe, run nothing")
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    parser.add_argument(
        "--workers", type=_count, default=2, help="processes that decode image files (default: 2)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got '{text}'")
    return int(text)


def _command(options: argparse.Namespace) -> int:
    if options.schema:
        by_first(lambda: print(json.dumps(plan.schema(), indent=2)))
        return 0
    if options.recipe is None:
        raise UserError(
            "no recipe given; try: python -m compress.pipeline pipelines/quickstart.yaml"
        )
    planned, shapes = _planned(options)
    device = usable_device(options.device)
    if options.check:
        by_first(lambda: preview.show(planned, shapes))
        return 0
    drained(_running(options, planned, device, {}))
    return 0


def run_steps(arguments: list[str], companions: dict[Any, Any]) -> Generator[Position, None, None]:
    """The command as a generator that stops before each training step of a student.

    Args:
        arguments: the command's, without its name.
        companions: what all runs that take turns with it have in common, empty at first.

    Raises:
        UserError: also written to the run's log.
    """
    options = _parser().parse_args(arguments)
    planned, _ = _planned(options)
    yield from _running(options, planned, usable_device(options.device), companions)


def _planned(options: argparse.Namespace) -> tuple[Plan, Shapes | None]:
    """The checked recipe's plan, and the shapes of its networks."""
    recipe = load(options.recipe, options.overrides)
    for name in ("*",) if options.trust_code else _models(recipe):
        user_code.trust(name)
    shapes, problems = checks.probe(recipe)
    if problems:
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
        among = f", {world()} processes" if world() > 1 else ""
        log(f"{options.recipe} -> {folder} ({device}{among})")
        run = Run(
            planned, directory, device, options.workers, options.fresh, options.until, companions
        )
        try:
            with track_to(recipe.trackers, folder, str(folder), resolved):
                current = yield from run.steps()
            by_first(lambda: _report(directory, current))
        except UserError as error:
            message = f"error: {error}"
            say_once(lambda: note(message), "log")
            raise


def _models(recipe: Recipe) -> list[str]:
    """The networks that the recipe names: their code is its user's choice."""
    parts = [recipe.student.model, *(teacher.model for teacher in recipe.teacher)]
    return [part.name for part in parts if part is not None]


def load(path: Path, overrides: list[str]) -> Recipe:
    """Read, change and check a recipe; every problem is in the `UserError`."""
    raw = read_yaml(path)
    for assignment in overrides:
        apply_override(raw, assignment)
    recipe, problems = check_shape(raw)
    if recipe is not None:
        problems = checks.check_recipe(recipe)
    if recipe is None or problems:
        raise UserError(listed(path, problems))
    return recipe


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


def listed(path: Path, problems: list[str]) -> str:
    """The problems of a file as one message."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems)


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


if __name__ == "__main__":
    sys.exit(main())

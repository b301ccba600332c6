"""The command of a sweep: train every cell of a table that is not trained yet, write the table.

python -m compress.sweep TABLE.yaml [--set key.path=value] [--out DIR] [--jobs N] [--check]
                         [--table] [--device D] [--trust-code] [--ray [ADDRESS]]

DIR/teachers/T.yaml, T/             each teacher's recipe and run, trained once
DIR/cells/TEACHER-STUDENT/M.yaml, M/  each cell's recipe and run: both ordinary, so that
                                    `python -m compress.pipeline M.yaml --out M` continues one
DIR/table.md  table.html  table.csv  table.json
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

from compress import checks, pipeline
from compress.artifacts import RunDirectory, write_text
from compress.console import console, log, log_to
from compress.errors import UserError
from compress.models import user_code
from compress.recipe import check_shape
from compress.recipe_files import apply_override, read_yaml
from compress.reporting.sweep_table import terminal_table, write_table
from compress.sweep_processes import Runner, run_process
from compress.sweep_ray import on_ray
from compress.sweep_recipe import Pair, Status, Sweep, SweepMethod, check_sweep, recipe_of
from compress.sweep_runs import Plan


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 a cell failed, 2 user error, 130."""
    return pipeline.reported(lambda: _command(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.sweep",
        description="Train methods x pairs x trials and write the table.",
    )
    parser.add_argument("sweep", type=Path, help="a YAML file, see pipelines/tables/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="change one value, as in recipe.data.root=FOLDER; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="the sweep's directory (default: runs/NAME)")
    parser.add_argument(
        "--jobs", type=_positive, default=1, help="runs at the same time (default: 1)"
    )
    _add_ray(parser)
    parser.add_argument("--check", action="store_true", help="check every cell, run nothing")
    parser.add_argument("--table", action="store_true", help="write the table of what there is")
    parser.add_argument("--device", help="as of compress.pipeline")
    parser.add_argument("--trust-code", action="store_true", help="as of compress.pipeline")
    return parser


def _add_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS (auto: the one that runs here; default: a Ray of "
        "this machine); all its nodes must see the same folders under the same paths",
    )
    parser.add_argument(
        "--cpus-per-run", type=_amount, default=1.0, metavar="N", help="with --ray (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-run", type=_amount, default=0.0, metavar="N", help="with --ray (default: 0)"
    )


def _amount(text: str) -> float:
    if not re.fullmatch(r"\d+|0?\.\d+", text):  # of a device, Ray gives a part or whole ones
        raise argparse.ArgumentTypeError(f"expected a whole number or a part of 1, got '{text}'")
    return float(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, got '{text}'")
    return int(text)


def _command(options: argparse.Namespace) -> int:
    raw = read_yaml(options.sweep, "a sweep", Sweep.model_fields)
    for assignment in options.overrides:
        apply_override(raw, assignment)
    sweep, problems = check_sweep(raw)
    refused: dict[str, str] = {}
    if sweep is not None:
        refused, problems = _check_cells(sweep, trust_code=options.trust_code)
    if sweep is None or problems:
        raise UserError(pipeline.listed(options.sweep, problems))
    folder = options.out or Path("runs") / options.sweep.stem
    plan = Plan(sweep, folder, Status(refused), _options(sweep, options), options.jobs)
    for name, reason in refused.items():
        log(f"{name}: not applicable: {reason}")
    log(f"{len(plan.cells)} cells, {len(refused)} not applicable, {len(plan.teachers())} teachers")
    if options.check:
        return 0
    # A recipe of the same name has another directory, not this one.
    with RunDirectory(folder, f"sweep {options.sweep.stem}").open(), log_to(folder / "log.txt"):
        write_text(folder / "sweep.yaml", yaml.safe_dump(raw, sort_keys=False))
        if options.table:
            plan.look()
        else:
            with _runner(options) as runner:
                plan.train(runner)
        path = write_table(sweep, folder, plan.status)
        console.print(terminal_table(sweep, folder, plan.status))
        log(f"table: {path}")
    for name, reason in plan.status.failed.items():
        console.print(f"error: {name}: {reason}", style="red", markup=False, soft_wrap=True)
    return 1 if plan.status.failed else 0


@contextmanager
def _runner(options: argparse.Namespace) -> Iterator[Runner]:
    """What runs the commands: processes of this machine, or a Ray cluster's."""
    if options.ray is not None:
        with on_ray(options.ray, cpus=options.cpus_per_run, gpus=options.gpus_per_run) as runner:
            yield runner
        return
    # Threads of several processes on the same cores wait for each other, up to fifty times longer.
    yield partial(run_process, threads=max(1, (os.cpu_count() or 1) // options.jobs))


def _options(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    """What every run is started with."""
    named = (entry.get("model") for entry in (*sweep.teachers.values(), *sweep.students.values()))
    names = [model["name"] if isinstance(model, dict) else model for model in named]
    own_code = any(isinstance(name, str) and user_code.is_user_code(name) for name in names)
    # A cell reads its teacher from a file; code that this very sweep names may run there, too.
    trust = ["--trust-code"] if options.trust_code or own_code else []
    return trust + (["--device", options.device] if options.device else [])


def _check_cells(sweep: Sweep, *, trust_code: bool) -> tuple[dict[str, str], list[str]]:
    """Cells that cannot be trained, with the reason, and what is wrong with the recipes."""
    refused: dict[str, str] = {}
    problems: list[str] = []
    for pair in sweep.pairs:
        found: list[str] = []
        for number, method in enumerate(sweep.methods):
            found += _check_cell(sweep, pair, method, number, trust_code=trust_code)
        if not found:
            recipe, _ = check_shape(recipe_of(sweep, pair, list(sweep.methods)))
            assert recipe is not None  # each of its methods was checked alone
            shapes, found = checks.probe(recipe)
            if shapes is not None:
                refused |= {f"{pair.name}/{row}": why for row, why in shapes.refused.items()}
                found = []
            found = [_in_sweep(problem, pair, 0) for problem in found]
        problems += found
    return refused, list(dict.fromkeys(problems))


def _check_cell(
    sweep: Sweep, pair: Pair, method: SweepMethod, number: int, *, trust_code: bool
) -> list[str]:
    recipe, found = check_shape(recipe_of(sweep, pair, [method]))
    if recipe is not None and not found:
        for part in (recipe.student.model, *(t.model for t in recipe.teacher)):
            if part is not None:
                user_code.trust("*" if trust_code else part.name)
        found = checks.check_recipe(recipe)
    return [_in_sweep(problem, pair, number) for problem in found]


def _in_sweep(problem: str, pair: Pair, number: int) -> str:
    """A problem of a cell's recipe with its path in the sweep's file."""
    places = {
        "distill.method": f"methods.{number}",
        "teacher": f"teachers.{pair.teacher}",
        "student": f"students.{pair.student}",
    }
    for start, place in places.items():
        if re.match(rf"{re.escape(start)}[.:]", problem):
            return place + problem.removeprefix(start)
    return f"recipe.{problem}"


if __name__ == "__main__":
    sys.exit(main())

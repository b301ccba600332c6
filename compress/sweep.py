"""The command of a sweep: train every cell of a table that is not trained yet, write the table.

python -m compress.sweep TABLE.yaml [--set key.path=value] [--out DIR] [--jobs N] [--check]

DIR/teachers/T.yaml, T/             each teacher's recipe and run, trained once
DIR/cells/TEACHER-STUDENT/M.yaml, M/  each cell's recipe and run: both ordinary, so that
                                    `python -m compress.pipeline M.yaml --out M` continues one
DIR/table.md  table.html  table.csv  table.json
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compress import checks, pipeline
from compress.artifacts import RunDirectory, write_text
from compress.console import console, log, log_to
from compress.errors import UserError
from compress.models import user_code
from compress.recipe import Recipe, check_shape
from compress.recipe_files import apply_override, read_yaml
from compress.reporting.sweep_table import terminal_table, write_table
from compress.sweep_recipe import Cell, Sweep, cells, check_sweep, recipe_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 1 a cell failed, 2 user error)."""
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
    parser.add_argument("--check", action="store_true", help="check every cell, run nothing")
    parser.add_argument("--table", action="store_true", help="write the table of what there is")
    parser.add_argument("--device", help="as of compress.pipeline")
    parser.add_argument("--trust-code", action="store_true", help="as of compress.pipeline")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, got '{text}'")
    return int(text)


@dataclass
class State:
    """A sweep, where it is kept, and which of its cells cannot be or were not trained, and why."""

    sweep: Sweep
    folder: Path
    refused: dict[str, str]
    failed: dict[str, str] = field(default_factory=dict)

    def cell_folder(self, cell: Cell) -> Path:
        """A cell's run directory."""
        return self.folder / "cells" / cell.name

    def teacher_folder(self, label: str) -> Path:
        """A teacher's run directory."""
        return self.folder / "teachers" / label

    @property
    def cells(self) -> list[Cell]:
        """The cells that can be trained."""
        return [cell for cell in cells(self.sweep) if cell.name not in self.refused]


def _command(options: argparse.Namespace) -> int:
    raw = read_yaml(options.sweep)
    for assignment in options.overrides:
        apply_override(raw, assignment)
    sweep, problems = check_sweep(raw)
    refused: dict[str, str] = {}
    if sweep is not None:
        refused, problems = _check_cells(sweep, trust_code=options.trust_code)
    if sweep is None or problems:
        raise UserError(pipeline.listed(options.sweep, problems))
    folder = options.out or Path("runs") / options.sweep.stem
    state = State(sweep, folder, refused)
    for name, reason in refused.items():
        log(f"{name}: not applicable: {reason}")
    trained = state.cells
    log(f"{len(trained)} cells, {len(refused)} not applicable, {len(sweep.teachers)} teachers")
    if options.check:
        return 0
    with RunDirectory(folder, options.sweep.stem).open(), log_to(folder / "log.txt"):
        write_text(folder / "sweep.yaml", yaml.safe_dump(raw, sort_keys=False))
        if not options.table:
            _train(state, options)
        path = write_table(sweep, folder, refused=refused, failed=state.failed)
    console.print(terminal_table(sweep, folder, refused=refused, failed=state.failed))
    log(f"table: {path}")
    for name, reason in state.failed.items():
        console.print(f"error: {name}: {reason}", style="red", markup=False, soft_wrap=True)
    return 1 if state.failed else 0


def _check_cells(sweep: Sweep, *, trust_code: bool) -> tuple[dict[str, str], list[str]]:
    """Cells that cannot be trained, with the reason, and what is wrong with the recipes."""
    refused: dict[str, str] = {}
    problems: list[str] = []
    for pair in sweep.pairs:
        recipe, found = check_shape(recipe_of(sweep, pair, list(sweep.methods)))
        if recipe is not None and not found:
            for part in (recipe.student.model, *(t.model for t in recipe.teacher)):
                if part is not None:
                    user_code.trust("*" if trust_code else part.name)
            found = checks.check_recipe(recipe)
        if recipe is not None and not found:
            shapes, found = checks.probe(recipe)
            if shapes is not None:
                refused |= {f"{pair.name}/{row}": why for row, why in shapes.refused.items()}
                found = []
        problems += [_in_sweep(problem, pair.name) for problem in found]
    return refused, list(dict.fromkeys(problems))


def _in_sweep(problem: str, pair: str) -> str:
    """A problem of a pair's recipe with its path in the sweep's file."""
    path, colon, rest = problem.partition(":")
    part = re.match(r"distill\.(method|compare\.(\d+))", path)
    if part is None:
        return f"{pair}: {problem}"
    number = 0 if part[2] is None else int(part[2]) + 1
    return f"methods.{number}{path[part.end() :]}{colon}{rest}"


def _train(state: State, options: argparse.Namespace) -> None:
    """Train the teachers, then the cells; the table is written after each of them."""
    sweep = state.sweep
    pairs = {cell.pair.teacher: cell.pair for cell in reversed(state.cells)}
    teachers = [
        _Run(
            f"teacher {label}",
            state.teacher_folder(label),
            recipe_of(sweep, pair, [sweep.methods[0]]),
            until="teacher",
        )
        for label, pair in pairs.items()
    ]
    _run_all(teachers, state, options)
    lost = {run.folder.name for run in teachers if run.name in state.failed}
    students = []
    for cell in state.cells:
        if cell.pair.teacher in lost:
            state.failed[cell.name] = f"its teacher {cell.pair.teacher} failed"
            continue
        file = state.teacher_folder(cell.pair.teacher) / "teacher" / "0" / "teacher.safetensors"
        recipe = recipe_of(sweep, cell.pair, [cell.method], str(file))
        students.append(_Run(cell.name, state.cell_folder(cell), recipe))
    _run_all(students, state, options)


@dataclass(frozen=True)
class _Run:
    """An ordinary run of a recipe."""

    name: str
    folder: Path
    recipe: dict[str, Any]
    until: str | None = None

    @property
    def file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".yaml")


def _run_all(runs: Iterable[_Run], state: State, options: argparse.Namespace) -> None:
    waiting = [run for run in runs if not _is_finished(run)]
    for run in waiting:
        run.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(run.file, yaml.safe_dump(run.recipe, sort_keys=False))
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        for run, (seconds, problem) in zip(
            waiting, pool.map(lambda run: _run(run, options), waiting), strict=True
        ):
            if problem is not None:
                state.failed[run.name] = problem
            log(f"{run.name}: {'failed' if problem else 'done'} ({seconds:.0f} s)")
            write_table(state.sweep, state.folder, refused=state.refused, failed=state.failed)


def _is_finished(run: _Run) -> bool:
    recipe: Recipe | None = check_shape(run.recipe)[0]
    if recipe is None or not (run.folder / "report.json").is_file():
        return False
    return pipeline.finished(recipe, run.folder, run.until)


def _run(run: _Run, options: argparse.Namespace) -> tuple[float, str | None]:
    """Run the recipe in a process of its own; returns its seconds and, if any, its error."""
    command = [sys.executable, "-m", "compress.pipeline", str(run.file), "--out", str(run.folder)]
    command += ["--until", run.until] if run.until else []
    command += ["--device", options.device] if options.device else []
    command += ["--trust-code"] if options.trust_code else []
    # Threads of several processes on the same cores wait for each other, up to fifty times longer.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    log(f"{run.name}: starts; its log is {run.folder}/log.txt")
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**threads, **os.environ}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return seconds, None
    told = (done.stdout + done.stderr).strip()
    start_of_error = told.rfind("error: ")
    reason = told[start_of_error + 7 :] if start_of_error >= 0 else told[-500:]
    return seconds, " ".join(reason.split()) or f"exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())

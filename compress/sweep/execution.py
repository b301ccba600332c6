"""A sweep of the right shape: check and train every cell, write the table."""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from compress.console.messages import log, log_to
from compress.console.terminal import console, print_error
from compress.errors import UserError
from compress.models import user_code
from compress.pipeline import STAGES
from compress.recipe.command_line import list_problems
from compress.recipe.schema import check_shape
from compress.run.checks import check_values
from compress.run.directory import RunDirectory
from compress.run.probe import probe
from compress.storage.files import write_text
from compress.sweep.processes import Runner, run_process
from compress.sweep.ray_cluster import on_ray
from compress.sweep.runs import SweepRuns
from compress.sweep.schema import Pair, Status, Sweep, SweepMethod, recipe_of
from compress.sweep.table import terminal_table, write_table


def run_sweep(options: argparse.Namespace, raw: dict[str, Any], sweep: Sweep) -> int:
    """The exit code: 0 done, 1 a cell failed.

    Args:
        raw: what the sweep was read from, with the changes of the command line.

    Raises:
        UserError: a cell's recipe is wrong, with every problem of all of them.
    """
    refused, problems = _check_cells(sweep, trust_code=options.trust_code)
    if problems:
        raise UserError(list_problems(options.sweep, problems))
    folder = options.out or Path("runs") / options.sweep.stem
    plan = SweepRuns(sweep, folder, Status(refused), _options(sweep, options), options.jobs)
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
        print_error(f"{name}: {reason}")
    return 1 if plan.status.failed else 0


@contextmanager
def _runner(options: argparse.Namespace) -> Iterator[Runner]:
    """Runner of the commands: processes of this machine, or a Ray cluster's."""
    if options.ray is not None:
        with on_ray(options.ray, cpus=options.cpus_per_run, gpus=options.gpus_per_run) as runner:
            yield runner
        return
    # Threads of several processes on the same cores wait for each other, up to fifty times longer.
    yield partial(run_process, threads=max(1, (os.cpu_count() or 1) // options.jobs))


def _options(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    """Command-line options of every run."""
    named = (entry.get("model") for entry in (*sweep.teachers.values(), *sweep.students.values()))
    names = [model["name"] if isinstance(model, dict) else model for model in named]
    names += [method.name for method in sweep.methods]
    own_code = {n: None for n in names if isinstance(n, str) and user_code.is_user_code(n)}
    # A cell reads its teacher from a file; code that this very sweep names may run there, no other.
    trust = [f"--trust-name={name}" for name in own_code]
    if options.trust_code:
        trust = ["--trust-code"]
    return trust + (["--device", options.device] if options.device else [])


def _check_cells(sweep: Sweep, *, trust_code: bool) -> tuple[dict[str, str], list[str]]:
    """Cells that cannot be trained, with the reason, and what is wrong with the recipes."""
    refused: dict[str, str] = {}
    problems: list[str] = []
    for pair in sweep.pairs:
        of_pair: list[str] = []
        for number, method in enumerate(sweep.methods):
            of_pair += _check_cell(sweep, pair, method, number, trust_code=trust_code)
        if not of_pair:
            recipe, _ = check_shape(recipe_of(sweep, pair, list(sweep.methods)))
            assert recipe is not None  # each of its methods was checked alone
            shapes, of_pair = probe(recipe)
            if shapes is not None:
                refused |= {f"{pair.name}/{row}": why for row, why in shapes.refused.items()}
                of_pair = []
            of_pair = [_in_sweep(problem, pair, 0) for problem in of_pair]
        problems += of_pair
    return refused, list(dict.fromkeys(problems))


def _check_cell(
    sweep: Sweep, pair: Pair, method: SweepMethod, number: int, *, trust_code: bool
) -> list[str]:
    recipe, problems = check_values(recipe_of(sweep, pair, [method]), STAGES)
    networks = (recipe.student.model, *(t.model for t in recipe.teacher)) if recipe else ()
    for part in (*networks, method):
        if part is not None:
            user_code.trust("*" if trust_code else part.name)
    return [_in_sweep(problem, pair, number) for problem in problems]


def _in_sweep(problem: str, pair: Pair, number: int) -> str:
    """A problem of a cell's recipe with its path in the sweep's file."""
    several = {f"teacher.{i}": f"teachers.{label}" for i, label in enumerate(pair.teachers)}
    places = {
        "distill.method": f"methods.{number}",
        **({"teacher": f"teachers.{pair.teacher}"} if isinstance(pair.teacher, str) else several),
        "student": f"students.{pair.student}",
    }
    for start, place in places.items():
        if re.match(rf"{re.escape(start)}[.:]", problem):
            return place + problem.removeprefix(start)
    return f"recipe.{problem}"

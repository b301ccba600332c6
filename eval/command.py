"""The command of every transfer task: `python -m eval.TASK RUN_OR_BUNDLE [...] --data DIR`.

Its run directory holds `transfer/DATA/` per data set, `result.json` and `table.md`; the same
command again goes on where it stopped, and trains only what is new. torchrun starts it too.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compress.artifacts import Outcome, RunDirectory, read_result, write_json, write_text
from compress.console import console, log, log_to
from compress.environment import environment
from compress.errors import exit_code
from compress.launch import say_once, started
from compress.models import user_code
from compress.ranks import by_first, world
from compress.recipe import TRANSFER_TRAIN
from eval.asked import TRAINING, Asked, asked_of
from eval.options import add_options
from eval.stage import DATASETS, TASKS, evaluated
from eval.tables import table_of


def main(task: str, arguments: list[str] | None = None) -> int:
    """Run a task's command; the exit code: 0, 2 after a user's mistake, 130 interrupted."""
    with started():
        options = by_first(lambda: _parser(task).parse_args(arguments))
        return exit_code(partial(_command, task, options), lambda m: say_once(partial(_tell, m)))


def _tell(message: str) -> None:
    console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


def _parser(task: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m eval.{task}",
        description=(TASKS[task].__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("origins", nargs="+", metavar="RUN_OR_BUNDLE", help="or torchvision:resnet50@FILE.pth")
    add("--data", nargs="+", type=Path, default=[], help="folders of data sets")
    add("--dataset", choices=DATASETS[task], help="their layout (default: recognised)")
    add("--init", nargs="+", help="distilled, alone, teacher, scratch, or labels of students")
    add("--seeds", type=int, default=3, help="trainings of each init (default: 3)")
    add("--out", type=Path, help="run directory (default: runs/TASK-NAME)")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--model", help="architecture, where a file of weights alone is given")
    add("--allow-partial", action="store_true", help="accept weights that match in part")
    add("--trust-code", action="store_true", help="run code that a model file names")
    for name in TRAINING:
        kind = float if name in ("lr", "weight_decay") else int
        usual = TRANSFER_TRAIN[task].get(name)
        told = f"default: {usual}" if usual is not None else None
        add(f"--{name.replace('_', '-')}", type=kind, help=told)
    add_options(parser, task)
    return parser


def _command(task: str, options: argparse.Namespace) -> int:
    if options.trust_code:
        user_code.trust("*")
    asked = asked_of(task, options)
    out: Path = options.out or Path("runs") / f"{task}-{asked.main}"
    directory = RunDirectory(out, f"eval.{task}")
    with directory.open(), log_to(out / "log.txt"):
        log(f"eval.{task} {' '.join(options.origins)} -> {out} ({asked.device})")
        results = {label: _result(directory, asked, label) for label in asked.data}
        table = table_of(results)
        write_json(out / "result.json", {"task": task, "results": results})
        protocol = next(iter(results.values()))["protocol"]
        write_text(out / "table.md", f"{table.markdown()}\n{protocol}\n")
        by_first(lambda: console.print(table.rich()))
        log(f"table: {out / 'table.md'}")
    return 0


def _result(directory: RunDirectory, asked: Asked, label: str) -> dict[str, Any]:
    """The values of one data set's result, read where it is there already."""
    stage, fields = f"transfer/{label}", by_first(partial(asked.fields, label))
    full = {**fields, "init": asked.inits, "seeds": asked.part.seeds}
    if not by_first(partial(directory.finished, stage, full)):
        by_first(partial(_prepare, directory, stage, fields))
        begun = time.perf_counter()
        context = asked.context(label, directory.stage_folder(stage))
        values = evaluated(asked.task, context, asked.arguments)
        told = {"seconds": time.perf_counter() - begun, "processes": world()}
        done = Outcome(values, {**told, "environment": environment(asked.device)})
        by_first(partial(directory.finish, stage, full, done))
    values = by_first(partial(read_result, directory.folder, stage))["values"]
    return dict(values)


def _prepare(directory: RunDirectory, stage: str, fields: Mapping[str, Any]) -> None:
    """Go on in the stage's folder where it was begun for the same; else put it aside."""
    if changed := directory.differences(stage, fields):
        log(f"{stage}: done anew ({'; '.join(changed[:3])})")
        directory.supersede(stage)
        directory.restore(stage, fields)
    directory.begin(stage, fields)

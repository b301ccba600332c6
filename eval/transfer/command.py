"""The command of every transfer task: `python -m eval.TASK RUN_OR_BUNDLE [...] --data DIR`.

Its run directory holds `transfer/DATA/` per data set, `result.json` and `table.md`; the same
command again goes on where it stopped, and trains only what is new. torchrun starts it too.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from compress.console.messages import console, log, log_to
from compress.distributed.collectives import by_first, world
from compress.environment import environment
from compress.errors import doing
from compress.models import user_code
from compress.recipe.schema import TRANSFER_TRAIN, TransferTrain
from compress.run.launch import reported, started
from compress.run.skipping import stands
from compress.stages.job import Outcome
from compress.storage.files import write_json, write_text
from compress.storage.results import read_result
from compress.text import printable
from eval.transfer.context import begun, depends_on
from eval.transfer.options import add_options
from eval.transfer.request import Asked, asked_of
from eval.transfer.stage import DATASETS, TASKS, evaluated, files
from eval.transfer.tables import table_of


def main(task: str, arguments: list[str] | None = None) -> int:
    """Run a task's command; the exit code: 0, 2 after a user's mistake, 130 or 143 stopped."""
    with started():
        options = by_first(lambda: _parser(task).parse_args(arguments))
        return reported(partial(_command, task, options))


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
    _add_training(parser, task)
    add_options(parser, task)
    return parser


def _add_training(parser: argparse.ArgumentParser, task: str) -> None:
    """Add an option for every key of a transfer entry's `train`."""
    group = parser.add_argument_group(
        "the training's",
        "as YAML, such as --schedule poly or --schedule '{name: multistep, milestones: [0.75]}'",
    )
    usual = TransferTrain(**TRANSFER_TRAIN[task])
    for name, value in usual.model_dump().items():
        flag = f"--{name.replace('_', '-')}"
        shared: dict[str, Any] = {"dest": f"train.{name}", "help": f"default: {value}"}
        shared["default"] = argparse.SUPPRESS
        if isinstance(value, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
        else:
            group.add_argument(flag, metavar=name.upper(), **shared)


def _command(task: str, options: argparse.Namespace) -> int:
    if options.trust_code:
        user_code.trust("*")
    asked = asked_of(task, options)
    out = asked.directory.folder
    with asked.directory.open(), log_to(out / "log.txt"):
        log(f"eval.{task} {' '.join(options.origins)} -> {out} ({asked.device})")
        results = {label: _result(asked, label) for label in asked.data}
        table = table_of(results)
        write_json(out / "result.json", {"task": task, "results": results})
        protocol = next(iter(results.values()))["protocol"]
        write_text(out / "table.md", f"{table.markdown()}\n\n{printable(protocol)}\n")
        by_first(lambda: console.print(table.rich()))
        log(f"table: {out / 'table.md'}")
    return 0


def _result(asked: Asked, label: str) -> dict[str, Any]:
    """The values of one data set's result, read where it is there already."""
    directory, fields = asked.directory, by_first(partial(asked.fields, label))
    context = asked.context(label, fields)
    stage, full = context.stage, by_first(partial(depends_on, context))
    if not by_first(partial(stands, directory, stage, full, files, fields)):
        by_first(partial(begun, directory, stage, fields))
        start = time.perf_counter()
        with doing(stage):
            values = evaluated(asked.task, context, asked.arguments)
        told = {"seconds": time.perf_counter() - start, "processes": world()}
        done = Outcome(values, {**told, "environment": environment(asked.device)})
        by_first(
            lambda: directory.finish(
                stage, full, done, files(directory.stage_folder(stage), done.values)
            )
        )
    values = by_first(partial(read_result, directory.folder, stage))["values"]
    return dict(values)

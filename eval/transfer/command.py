"""The command of every transfer task: `python -m eval.TASK RUN_OR_BUNDLE [...] --data DIR`.

Its run directory holds `transfer/DATA/` per data set, `result.json` and `table.md`; the same
command again goes on where it stopped, and trains only what is new. torchrun starts it too.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from compress.console.messages import console, log, log_to
from compress.distributed.collectives import on_main_process
from compress.models import user_code
from compress.recipe.schema import TRANSFER_TRAIN, TransferTrain
from compress.run.executor import Executor
from compress.run.launch import launch, usable_device
from compress.run.stages import StageTable
from compress.storage.files import write_json, write_text
from compress.storage.results import read_result
from compress.text import printable
from eval.transfer.options import add_options
from eval.transfer.request import read_request
from eval.transfer.stage import DATASETS, TASKS
from eval.transfer.tables import table_of

STAGES = StageTable({"transfer": "eval.transfer.stage"})


def main(task: str, arguments: list[str] | None = None) -> int:
    """Run a task's command; the exit code: 0, 2 after a user's mistake, 130 or 143 stopped."""
    return launch(lambda: parser(task).parse_args(arguments), partial(_command, task))


def parser(task: str) -> argparse.ArgumentParser:
    """The parser of a task's arguments."""
    parser = argparse.ArgumentParser(
        prog=f"compress eval {task}",
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
    request, device = read_request(task, options), usable_device(options.device)
    directory = request.directory
    with directory.open(), log_to(directory.folder / "log.txt"):
        log(f"eval.{task} {' '.join(options.origins)} -> {directory.folder} ({device})")
        Executor(on_main_process(request.plan), STAGES, directory, device).run()
        table = on_main_process(lambda: _write_results(task, directory.folder, list(request.data)))
        log(f"table: {table}")
    return 0


def _write_results(task: str, folder: Path, labels: list[str]) -> Path:
    """Write and print the table of these data sets; returns its file."""
    results = {label: read_result(folder, f"transfer/{label}")["values"] for label in labels}
    table = table_of(results)
    write_json(folder / "result.json", {"task": task, "results": results})
    protocol = next(iter(results.values()))["protocol"]
    write_text(folder / "table.md", f"{table.markdown()}\n\n{printable(protocol)}\n")
    console.print(table.rich())
    return folder / "table.md"

"""The command of a sweep: train every cell of a table that is not trained yet, write the table.

python -m compress.sweep TABLE.yaml [--set key.path=value] [--out DIR] [--jobs N] [--check]
                         [--table] [--device D] [--trust-code] [--ray [ADDRESS]]

DIR/teachers/T.yaml, T/             each teacher's recipe and run, trained once
DIR/cells/TEACHER-STUDENT/M.yaml, M/  each cell's recipe and run: both ordinary, so that
                                    `python -m compress.pipeline M.yaml --out M` continues one
DIR/table.md  table.html  table.csv  table.json
"""

import argparse
import re
import sys
from pathlib import Path

from compress.console.ending import exit_code
from compress.console.terminal import print_error, print_stop
from compress.errors import UserError
from compress.recipe.command_line import list_problems
from compress.recipe.files import add_set_option, read_yaml, with_overrides
from compress.sweep.schema import Sweep, check_sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 1 a cell failed, 2 user error, 130 or 143 stopped."""
    return exit_code(lambda: _command(parser().parse_args(arguments)), print_error, print_stop)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress sweep",
        description="Train methods x pairs x trials and write the table.",
    )
    parser.add_argument("sweep", type=Path, help="a YAML file, see pipelines/tables/")
    add_set_option(parser, explanation="change one value, as in recipe.data.root=FOLDER")
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
    raw = with_overrides(read_yaml(options.sweep, "a sweep", Sweep.model_fields), options)
    sweep, problems = check_sweep(raw)
    if sweep is None:
        raise UserError(list_problems(options.sweep, problems))
    # What is heavy is imported after the sweep is known to be right.
    from compress.sweep.execution import run_sweep

    return run_sweep(options, raw, sweep)


if __name__ == "__main__":
    sys.exit(main())

"""What a recipe's command is asked for, and what can be wrong with that before torch is imported.

The import takes seconds; nobody should wait that long for `--help` or to read of a misspelt option.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.console.terminal import print_error
from compress.errors import UserError, exit_code
from compress.recipe.files import apply_override, read_yaml
from compress.text import one_line

_MOST_PROBLEMS = 200


def parser() -> argparse.ArgumentParser:
    """The options of `python -m compress.pipeline`."""
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
        "--trust-code", action="store_true", help="run any code that a model file names"
    )
    parser.add_argument(
        "--trust-name",
        action="append",
        default=[],
        metavar="CODE:CALLABLE",
        help="run this code where a model file names it; may be repeated",
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


def values_of(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe that is asked for as plain values, with the changes of the command line.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if options.recipe is None:
        raise UserError(
            "no recipe given; try: python -m compress.pipeline pipelines/quickstart.yaml"
        )
    raw = read_yaml(options.recipe)
    for assignment in options.overrides:
        apply_override(raw, assignment)
    return raw


def listed(path: Path, problems: Sequence[str]) -> str:
    """The problems of a file as one message."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"  {one_line(problem)}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS:,} more")
    return f"{one_line(str(path))} has {count}:\n" + "\n".join(lines)


def mistake(look: Callable[[], object]) -> int:
    """0, or the exit code of the mistake that a first look at the options has found and told.

    What torchrun started does not look: only processes that have met can tell it once.
    """

    def looked() -> int:
        look()
        return 0

    return 0 if "LOCAL_RANK" in os.environ else exit_code(looked, print_error)

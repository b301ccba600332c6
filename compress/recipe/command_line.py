"""The command line of a recipe, read before torch is imported.

The import takes seconds; nobody should wait that long for `--help` or to read of a misspelt option.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.recipe.files import add_set_option, read_yaml, with_overrides
from compress.text import one_line

_MOST_PROBLEMS = 200


def parser() -> argparse.ArgumentParser:
    """The parser of `compress run`."""
    parser = argparse.ArgumentParser(
        prog="compress run",
        description="Run a recipe: teacher, distill, fuse, account, export, transfer, report. What "
        "is done is skipped, what was interrupted goes on.",
    )
    _add_common(parser)
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--fresh",
        action="append",
        default=[],
        metavar="STAGE",
        help="redo this stage, and what follows where its result differs; the old one is kept",
    )
    parser.add_argument("--check", action="store_true", help="as `compress check`; run nothing")
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    parser.set_defaults(timing=True)
    return parser


def check_parser() -> argparse.ArgumentParser:
    """The parser of `compress check`."""
    parser = argparse.ArgumentParser(
        prog="compress check",
        description="Find every mistake of a recipe, open its data, and say what it would train, "
        "ship, need and take. Trains nothing but a few steps, to time them.",
    )
    _add_common(parser)
    parser.add_argument(
        "--no-timing", dest="timing", action="store_false", help="train no step, estimate no time"
    )
    parser.set_defaults(check=True, schema=False, until=None, fresh=[])
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", type=Path, help="a YAML file, see pipelines/")
    add_set_option(parser, explanation="change one value of the recipe")
    parser.add_argument("--out", type=Path, help="the run directory (default: runs/RECIPE NAME)")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="of a check: list stages, taps and adapters"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    parser.add_argument(
        "--workers", type=_count, default=2, help="processes that decode image files (default: 2)"
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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got '{text}'")
    return int(text)


@dataclass(frozen=True)
class RecipeRequest:
    """A command line and the recipe that it names, as plain values; None with `--schema` alone."""

    options: argparse.Namespace
    values: dict[str, Any] | None


def read_request(
    arguments: list[str] | None, parser: Callable[[], argparse.ArgumentParser] = parser
) -> RecipeRequest:
    """Read a command line and its recipe's file, with the changes of `--set`.

    Raises:
        UserError: there is no recipe, or it cannot be read.
    """
    options = parser().parse_args(arguments)
    if options.schema:
        return RecipeRequest(options, None)
    if options.recipe is None:
        raise UserError(
            "no recipe given; `compress init` writes one for your images, "
            "`compress init --list` lists those that come with the package"
        )
    return RecipeRequest(options, with_overrides(read_yaml(options.recipe), options))


def list_problems(path: Path, problems: Sequence[str]) -> str:
    """The problems of a file as one message."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"  {one_line(problem)}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS:,} more")
    return f"{one_line(str(path))} has {count}:\n" + "\n".join(lines)

"""The command: run or skip each planned stage of a recipe, then point at the report.

compress run RECIPE.yaml [--set key.path=value] [--out DIR] [--until STAGE] [--fresh STAGE]
                         [--device D] [--check] [--schema]
torchrun --nproc-per-node N -m compress.pipeline RECIPE.yaml ...
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache

from compress.console.ending import report_mistake
from compress.recipe.command_line import RecipeRequest, check_parser, parser, read_request
from compress.run.stages import StageTable

STAGES = StageTable(
    {
        "teacher": "compress.stages.teacher",
        "distill": "compress.stages.distill",
        "fuse": "compress.stages.fuse",
        "account": "compress.stages.account",
        "export": "export.stage",
        "transfer": "eval.transfer.stage",
    }
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 user error, 130 interrupted, 143 after SIGTERM."""
    return _run(arguments, parser)


def check(arguments: list[str] | None = None) -> int:
    """`compress check RECIPE.yaml`: look at the recipe and its world; the exit code: 0 or 2."""
    return _run(arguments, check_parser)


def _run(arguments: list[str] | None, parser: Callable[[], argparse.ArgumentParser]) -> int:
    @cache
    def read() -> RecipeRequest:
        return read_request(arguments, parser)

    if code := report_mistake(read):
        return code
    # What is heavy is imported after the arguments are known to be right.
    from compress.run import command

    return command.main(read, STAGES)


if __name__ == "__main__":
    sys.exit(main())

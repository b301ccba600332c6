"""The command: run or skip each planned stage of a recipe, then point at the report.

python -m compress.pipeline RECIPE.yaml [--set key.path=value] [--out DIR] [--until STAGE]
                            [--check] [--fresh STAGE] [--device D] [--schema]
torchrun --nproc-per-node N -m compress.pipeline RECIPE.yaml ...
"""

import sys
from functools import cache

from compress.console.ending import report_mistake
from compress.recipe.command_line import RecipeRequest, read_request
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

    @cache
    def read() -> RecipeRequest:
        return read_request(arguments)

    if code := report_mistake(read):
        return code
    # What is heavy is imported after the arguments are known to be right.
    from compress.run import command

    return command.main(read, STAGES)


if __name__ == "__main__":
    sys.exit(main())

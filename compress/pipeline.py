"""The command: run or skip each planned stage of a recipe, then point at the report.

python -m compress.pipeline RECIPE.yaml [--set key.path=value] [--out DIR] [--until STAGE]
                            [--check] [--fresh STAGE] [--device D] [--schema]
torchrun --nproc-per-node N -m compress.pipeline RECIPE.yaml ...
"""

import sys

from compress.recipe.command_line import mistake, parser, values_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 user error, 130 interrupted, 143 after SIGTERM."""
    if code := mistake(lambda: _look(arguments)):
        return code
    # What is heavy is imported after the arguments are known to be right.
    from compress.run import command

    return command.main(arguments)


def _look(arguments: list[str] | None) -> None:
    options = parser().parse_args(arguments)
    if not options.schema:
        values_of(options)


if __name__ == "__main__":
    sys.exit(main())

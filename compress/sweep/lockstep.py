"""Several ordinary runs in one process, so that students of one teacher learn side by side.

python -m compress.sweep.lockstep A.yaml B.yaml ... [options of compress.pipeline]

Each recipe's run directory is its file's name without `.yaml`. Where the recipes have
`engine: {share_teacher: true}`, each batch is shown to their teacher once. A run that fails leaves
the others alone; each of them can be continued by `python -m compress.pipeline` as well.
"""

import argparse
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from compress.console.messages import console
from compress.console.terminal import print_error
from compress.engine.lockstep import drain, in_lockstep
from compress.engine.loop import Position
from compress.errors import UserError
from compress.pipeline import STAGES
from compress.run import command
from compress.run.launch import launch


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 one or more failed, 130 or 143 stopped)."""
    parser = argparse.ArgumentParser(prog="python -m compress.sweep.lockstep", description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path, help="files of cells")
    options, rest = parser.parse_known_args(arguments)
    return launch(lambda: options.recipes, lambda recipes: _run(recipes, rest))


def _run(recipes: Sequence[Path], options: Sequence[str]) -> int:
    failed: dict[Path, str] = {}
    lockstep_values: dict[Any, Any] = {}
    runs = [_one(path, options, lockstep_values, failed) for path in recipes]
    drain(in_lockstep(runs))
    for path, message in failed.items():
        print_error(f"{path}: {message}")
    return 2 if failed else 0


def _one(
    path: Path, options: Sequence[str], lockstep_values: dict[Any, Any], failed: dict[Path, str]
) -> Generator[Position, None, None]:
    arguments = [str(path), "--out", str(path.with_suffix("")), *options]
    try:
        yield from command.run_steps(arguments, STAGES, lockstep_values)
    except (UserError, OSError) as error:
        failed[path] = str(error)
    except Exception as error:  # a defect in one run is no reason to lose the others
        console.print_exception()
        failed[path] = f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())

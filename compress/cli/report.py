"""`compress report RUN`: write the report of a run again, as far as the run has come."""

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from compress.console.ending import exit_code
from compress.console.terminal import console
from compress.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after a user's mistake."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: _command(options))


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress report",
        description="Write the report of a run again (report.html, report.md, report.json), also "
        "while the run goes on, and print its tables.",
    )
    parser.add_argument("run", type=Path, help="a run directory, such as runs/quickstart")
    parser.add_argument("--open", action="store_true", help="open report.html in the browser")
    return parser


def _command(options: argparse.Namespace) -> int:
    folder: Path = options.run
    if not (folder / "run.json").is_file():
        raise UserError(
            f"'{folder}' is no run directory of `compress run` (it has no run.json); give one, "
            "such as runs/RECIPE"
        )
    from compress import reporting

    page = reporting.write_report(folder, _test_images(folder))
    for table in reporting.terminal_tables(folder):
        console.print(table)
    console.print(f"report: {page}", soft_wrap=True)
    if options.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _test_images(folder: Path) -> Any:
    """The test images of a run's recipe, for pictures in the report; None where they are gone."""
    from compress.recipe.files import load_resolved
    from compress.stages import dataset_of

    try:
        return dataset_of(load_resolved(folder)).test
    except (UserError, OSError):
        return None

"""`python -m export RUN`: any trained student of a run directory as a checked ONNX file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.recipe import Recipe
    from export.parity import Parity


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory of compress.pipeline")
    parser.add_argument("--student", help="which student (default: the recipe's main method)")
    parser.add_argument("--out", type=Path, help="the file to write (default: STUDENT.onnx)")
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that the student's file names"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    options = parser.parse_args(arguments)
    try:
        if options.trust_code:
            from compress.models import user_code

            user_code.trust("*")
        _export(options.run, options.student, options.out, force=options.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(run: Path, name: str | None, out: Path | None, *, force: bool) -> None:
    # What is heavy is imported after the arguments are known to be right.
    from compress.deployment import load_student
    from compress.recipe import Export
    from compress.recipe_files import load_resolved
    from export.stage import export_checked

    recipe = load_resolved(run)
    name = _choose(run, name, recipe)
    path = out or Path(f"{name}.onnx")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: folder '{path.parent}' does not exist")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give the name of the file to write")
    if path.exists() and not (force and path.is_file()):
        raise UserError(f"--out {path}: it exists; choose another name, or replace it with --force")
    settings = recipe.export or Export()
    student = load_student(run / "distill" / name)
    parity = export_checked(
        student, path, recipe, opset=settings.opset, tolerance=settings.tolerance
    )
    _show(name, path, parity)


def _choose(run: Path, name: str | None, recipe: "Recipe") -> str:
    """The student to export: a folder of RUN/distill."""
    from compress.errors import nearest

    trained = sorted(p.parent.name for p in (run / "distill").glob("*/result.json"))
    if not trained:
        raise UserError(f"{run} has no trained student yet; run the recipe first")
    method = recipe.distill.method
    wanted = name or method.label or method.name
    if wanted not in trained:
        hint = nearest(wanted, trained)
        raise UserError(f"{run} has no student '{wanted}'; trained: {', '.join(trained)}{hint}")
    return wanted


def _show(name: str, path: Path, parity: "Parity") -> None:
    from rich.table import Table
    from rich.text import Text

    from compress.console import console

    table = Table(title=Text(f"{name} -> {path}"), title_justify="left", show_header=False)
    table.add_row("size", f"{path.stat().st_size:,} bytes")
    table.add_row("test images", f"{parity.images:,}")
    table.add_row("top-1, trained network", f"{parity.torch_top1_percent:.2f} %")
    table.add_row("top-1, ONNX Runtime", f"{parity.onnx_top1_percent:.2f} %")
    table.add_row("same class", f"{parity.top1_agreement_percent:.2f} %")
    table.add_row("largest difference of a logit", f"{parity.max_abs_difference:.3g}")
    table.add_row("largest logit", f"{parity.logit_scale:.3g}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

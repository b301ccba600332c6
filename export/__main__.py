"""`python -m export RUN`: any student of a run directory as a bundle that runs anywhere."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import UserError, nearest

if TYPE_CHECKING:
    from compress.deployment import Student
    from compress.recipe import Export, Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory of compress.pipeline")
    parser.add_argument("--student", help="which student (default: the recipe's main method)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN-STUDENT)")
    parser.add_argument("--no-int8", action="store_true", help="leave out student.int8.onnx")
    parser.add_argument(
        "--raw-pixels", action="store_true", help="files that take uint8 (N, H, W, 3)"
    )
    parser.add_argument("--license", help="for the model card, such as apache-2.0")
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that the student's file names"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    options = parser.parse_args(arguments)
    try:
        if options.trust_code:
            from compress.models import user_code

            user_code.trust("*")
        _export(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(options: argparse.Namespace) -> None:
    # What is heavy is imported after the arguments are known to be right.
    from compress.recipe_files import load_resolved
    from export.bundle import write_bundle
    from export.stage import request

    run: Path = options.run
    recipe = load_resolved(run)
    name = _choose(run, options.student, recipe)
    out: Path = options.out or Path(f"{run.resolve().name}-{name}")
    _refuse_occupied(out, force=options.force)
    settings = _settings(recipe, options)
    student = _load(run / "distill" / name)
    asked = request(name, student, run, recipe, settings)
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_bundle(asked, fresh)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
    print(f"bundle: {out}")


def _settings(recipe: "Recipe", options: argparse.Namespace) -> "Export":
    """The recipe's export section with what the command line changes."""
    from compress.recipe import Export

    changes: dict[str, object] = {}
    if options.no_int8:
        changes["int8"] = None
    if options.raw_pixels:
        changes["raw_pixels"] = True
    if options.license:
        changes["license"] = options.license
    return (recipe.export or Export()).model_copy(update=changes)


def _load(folder: Path) -> "Student":
    """A finished student, or an interrupted one as its last checkpoint has it."""
    from compress.console import log
    from compress.deployment import load_student, load_unfinished

    if (folder / "result.json").is_file():
        return load_student(folder)
    student = load_unfinished(folder)
    epoch = student.description["interrupted"]["after_epoch"]
    log(f"{folder} was interrupted; this is its student after epoch {epoch}")
    return student


def _refuse_occupied(out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: folder '{out.parent}' does not exist")
    if not out.exists():
        return
    if not (out / "manifest.json").is_file():
        raise UserError(f"--out {out}: it exists and is no bundle; choose another name")
    if not force:
        raise UserError(f"--out {out}: it exists; choose another name, or replace it with --force")


def _choose(run: Path, name: str | None, recipe: "Recipe") -> str:
    """The student to export: a folder of RUN/distill."""
    files = ("result.json", "checkpoint.safetensors")
    trained = sorted({p.parent.name for file in files for p in (run / "distill").glob(f"*/{file}")})
    if not trained:
        raise UserError(f"{run} has no trained student yet; run the recipe first")
    method = recipe.distill.method
    wanted = name or method.label or method.name
    if wanted not in trained:
        hint = nearest(wanted, trained)
        raise UserError(f"{run} has no student '{wanted}'; trained: {', '.join(trained)}{hint}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())

"""`compress export RUN`: any student of a run directory as a bundle that runs anywhere."""

import argparse
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.console.ending import exit_code
from compress.errors import UntrustedCode, UserError, nearest
from compress.text import printable

if TYPE_CHECKING:
    from compress.model_files.artifacts import Student
    from compress.recipe.schema import Export, Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0; 1 where the bundle lacks an int8 file that exceeded a limit; 2 after a user's mistake; 130
    interrupted.
    """
    args = parser().parse_args(arguments)
    return exit_code(lambda: _command(args))


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(prog="compress export", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory of compress.pipeline")
    parser.add_argument(
        "--student", help="which student (default: the recipe's export.student, else recommended)"
    )
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN-STUDENT)")
    parser.add_argument("--no-int8", action="store_true", help="leave out student.int8.onnx")
    parser.add_argument(
        "--raw-pixels", action="store_true", help="files that take uint8 (N, H, W, 3)"
    )
    parser.add_argument("--calibration-images", type=int, help="for int8 (default: the recipe's)")
    parser.add_argument("--calibration", help="minmax, entropy or percentile")
    parser.add_argument("--max-top1-drop", type=float, help="points that int8 may lose")
    parser.add_argument(
        "--min-agreement-percent",
        type=float,
        help="images, or pixels, that int8 must give the same class",
    )
    parser.add_argument(
        "--max-difference", type=float, help="of an int8 logit, relative to the largest"
    )
    parser.add_argument("--min-mean-cosine", type=float, help="of int8 and float embeddings")
    parser.add_argument("--min-low-cosine", type=float, help="that of the lowest percent of images")
    parser.add_argument("--max-miou-drop", type=float, help="points of mean IoU that int8 may lose")
    parser.add_argument(
        "--full-range",
        action="store_const",
        const=True,
        help="int8 weights of 8 bits: right only on CPUs with VNNI or ARM dot product",
    )
    parser.add_argument(
        "--leave-out", nargs="+", type=_layer, help="layers that stay float: first, last, numbers"
    )
    parser.add_argument("--flavour", help="cpu or tensorrt: what the int8 file is made for")
    parser.add_argument(
        "--search",
        action="store_const",
        const=True,
        help="try calibration methods and layers that stay float, and take what agrees best",
    )
    parser.add_argument("--opset", type=int, help="of the ONNX files (default: the recipe's)")
    parser.add_argument("--license", help="for the model card, such as apache-2.0")
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that the student's file names"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    return parser


def _layer(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _command(args: argparse.Namespace) -> int:
    if args.trust_code:
        from compress.models import user_code

        user_code.trust("*")
    try:
        return _export(args)
    except UntrustedCode as error:
        student = () if args.student is None else ("--student", args.student)
        again = shlex.join(["compress", "export", str(args.run), *student, "--trust-code"])
        raise UserError(f"{error}: {again}") from None


def _export(args: argparse.Namespace) -> int:
    # Heavy imports come after the arguments are known to be right.
    from compress.recipe.files import load_resolved
    from export.bundle.writer import UNFINISHED, write_bundle
    from export.stage import bundle_request

    run: Path = args.run
    recipe = load_resolved(run)
    name, remark = _choose(run, args.student, recipe)
    out: Path = args.out or Path(f"{run.resolve().name}-{name}")
    _refuse_occupied(out, force=args.force)
    settings = _settings(recipe, args)
    student = _load(run / "distill" / name)
    request = bundle_request(name, student, run, recipe, settings, remark)
    # The old bundle goes once the new one is whole and in its place.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=UNFINISHED) as folder:
        values, _ = write_bundle(request, Path(folder) / "new")
        if out.exists():
            out.rename(Path(folder) / "old")
        (Path(folder) / "new").rename(out)
    print(printable(f"bundle: {out}"))
    return 1 if values["int8_refused"] else 0


def _settings(recipe: "Recipe", args: argparse.Namespace) -> "Export":
    """The recipe's export section with what the command line changes."""
    from pydantic import ValidationError

    from compress.recipe.schema import Export, Int8, describe_errors

    base = recipe.export or Export()
    names = ["calibration_images", "calibration", "leave_out", "full_range", "flavour", "search"]
    names += ["max_top1_drop", "min_agreement_percent", "max_difference"]
    names += ["min_mean_cosine", "min_low_cosine", "max_miou_drop"]
    int8 = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    changes: dict[str, Any] = {}
    if args.no_int8:
        changes["int8"] = None
    elif int8:
        changes["int8"] = {**(base.int8 or Int8()).model_dump(), **int8}
    if args.raw_pixels:
        changes["raw_pixels"] = True
    if args.opset is not None:
        changes["opset"] = args.opset
    if args.license:
        changes["license"] = args.license
    try:
        return Export.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        raise UserError("; ".join(describe_errors(error, Export))) from None


def _load(folder: Path) -> "Student":
    """Load a finished student, or an interrupted one from its last checkpoint."""
    from compress.console.messages import log
    from compress.model_files.artifacts import load_student, load_unfinished

    if (folder / "result.json").is_file():
        return load_student(folder)
    student = load_unfinished(folder)
    epochs = student.description["interrupted"]
    log(
        f"{folder} was interrupted after epoch {epochs['after_epoch']}; this is its student as of "
        f"epoch {epochs['weights_of_epoch']}"
    )
    return student


def _refuse_occupied(out: Path, *, force: bool) -> None:
    """Refuse to replace anything but a whole bundle that holds nothing else."""
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: folder '{out.parent}' does not exist")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or out.resolve() == Path.cwd():
        raise UserError(f"--out {out}: give the name of a new folder, no link and not this folder")
    if not force:
        raise UserError(f"--out {out}: it exists; choose another name, or replace it with --force")
    from export.bundle.manifest import check_manifest

    try:
        listed = set(check_manifest(out).files)
    except UserError as error:
        raise UserError(
            f"--out {out}: it exists and is no whole bundle ({str(error).splitlines()[0]}); "
            "choose another name"
        ) from None
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    others = sorted(present - listed - {"manifest.json"})
    if others:
        raise UserError(f"--out {out}: it holds more than a bundle ({others[0]}); move that first")


def _choose(run: Path, name: str | None, recipe: "Recipe") -> tuple[str, str | None]:
    """The label of the student to export, a folder in RUN/distill, and why it is no other."""
    from compress.comparison.students import choose_shipped
    from compress.storage.results import read_result
    from compress.tasks import task_for

    folder, files = run / "distill", ("result.json", "checkpoint*.safetensors")
    trained = sorted({path.parent.name for file in files for path in folder.glob(f"*/{file}")})
    if not trained:
        raise UserError(f"{run} has no trained student yet; run the recipe first")
    wished = name or (recipe.export.student if recipe.export is not None else None)
    if wished is not None and wished not in trained:
        hint = nearest(wished, trained)
        raise UserError(f"{run} has no student '{wished}'; trained: {', '.join(trained)}{hint}")
    # Students that are not trained to their end are not compared.
    stages = [f"distill/{p.parent.name}" for p in sorted(folder.glob("*/result.json"))]
    stages += ["account"] if (run / "account" / "result.json").is_file() else []
    results = {stage: read_result(run, stage) for stage in stages}
    label = None if wished is None else re.sub(r"-trial\d+$", "", wished)
    metric = task_for(recipe.task, labels=recipe.data.labels).metric
    choice = choose_shipped(run, results, [*recipe.methods], label, metric)
    chosen = wished or choice.label
    if chosen not in trained:  # nothing is finished
        chosen = trained[0]
    if choice.remark is not None:
        print(printable(choice.remark))
    return chosen, choice.remark


if __name__ == "__main__":
    sys.exit(main())

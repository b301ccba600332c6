"""`compress verify BUNDLE`: check that a bundle is whole and computes the trained network.

Checks every file against the manifest, predict.py against this version's, every ONNX file by ONNX's
own checker, and runs torch and ONNX Runtime on the same test images, at batch 1 and N, on each
number of threads; the int8 file also exactly, without the integer kernels of this machine. Exit
code: 0 in order, 1 where a limit is exceeded or predict.py is another, 2 after a user's mistake,
which a changed file counts as, 130 when interrupted.
"""

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.console.ending import exit_code
from compress.errors import UntrustedCode, UserError

if TYPE_CHECKING:
    from compress.data import Dataset

LOADER_ONLY = (
    "outputs were not compared: the images of this bundle came from a program's DataLoader; only "
    "that program can compare on them (compress.distiller.Distiller.verify does)"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, see the module's docstring."""
    args = parser().parse_args(arguments)
    return exit_code(lambda: _command(args))


def _command(args: argparse.Namespace) -> int:
    if args.trust_code:
        from compress.models import user_code

        user_code.trust("*")
    try:
        return _verify(args)
    except UntrustedCode as error:
        data = () if args.data is None else ("--data", str(args.data))
        again = shlex.join(["compress", "verify", str(args.bundle), *data, "--trust-code"])
        raise UserError(f"{error}: {again}") from None


def _verify(args: argparse.Namespace) -> int:
    report = verify_bundle(
        args.bundle,
        data=args.data,
        images=args.images,
        batch=args.batch,
        threads=args.threads,
        tolerance=args.tolerance,
        max_top1_drop=args.max_top1_drop,
        min_agreement_percent=args.min_agreement_percent,
        max_difference=args.max_difference,
        min_mean_cosine=args.min_mean_cosine,
        min_low_cosine=args.min_low_cosine,
        max_miou_drop=args.max_miou_drop,
    )
    if args.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        from export.verify.verdict import show

        show(report)
    return 1 if report["failures"] else 0


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(prog="compress verify", description=lines[0], epilog=lines[1])
    add = parser.add_argument
    add("bundle", type=Path, help="a folder that `compress export` wrote")
    add("--data", type=Path, help="the folder of the data set, where it needs one")
    add("--images", type=int, default=1000, help="test images at batch N (at batch 1: up to 100)")
    add("--batch", type=int, default=64, help="N (default: 64)")
    add("--threads", type=int, nargs="+", help="default: 1 and 2, where the machine has them")
    add("--tolerance", type=float, default=1e-3, help="of a float file, x the largest output")
    add("--max-top1-drop", type=float, default=1.0, help="points that int8 may lose")
    add("--min-agreement-percent", type=float, default=95.0, help="int8: images of the same class")
    add("--max-difference", type=float, default=0.1, help="int8: of a logit, x the largest logit")
    add("--min-mean-cosine", type=float, default=0.99, help="int8: of embeddings, the least mean")
    add("--min-low-cosine", type=float, default=0.95, help="int8: that of the lowest percent")
    add("--max-miou-drop", type=float, default=1.0, help="points of mean IoU that int8 may lose")
    add(
        "--trust-code",
        action="store_true",
        help="run code that student.json names, as of a network in your own file",
    )
    add("--json", action="store_true", help="the result as JSON")
    return parser


def verify_bundle(
    bundle: Path,
    *,
    data: Path | None = None,
    images: int = 1000,
    batch: int = 64,
    threads: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    max_top1_drop: float = 1.0,
    min_agreement_percent: float = 95.0,
    max_difference: float = 0.1,
    min_mean_cosine: float = 0.99,
    min_low_cosine: float = 0.95,
    max_miou_drop: float = 1.0,
    dataset: "Dataset | None" = None,
) -> dict[str, Any]:
    """Check a bundle, or that of a run directory; returns the report as JSON values.

    `failures` has one sentence per limit that is exceeded; `remarks` are drops
    of the int8 file that so few images cannot tell from their limit.

    Args:
        dataset: the images to compare on, in place of those that the manifest names. Where it names
            none that can be opened, since they came from a DataLoader, nothing is compared without:
            `not_compared` says so.

    Raises:
        UserError: a file is missing, changed or no model, or the data are not the bundle's.
    """
    limits = {
        "tolerance": tolerance,
        "max_top1_drop": max_top1_drop,
        "min_agreement_percent": min_agreement_percent,
        "max_difference": max_difference,
    }
    _check_numbers({"images": images, "batch": batch}, least=1)
    pixels = {
        "tolerance": tolerance,
        "max_miou_drop": max_miou_drop,
        "min_agreement_percent": min_agreement_percent,
    }
    _check_numbers({**limits, **pixels}, least=0)
    cosines = {"min_mean_cosine": min_mean_cosine, "min_low_cosine": min_low_cosine}
    _check_numbers(cosines, least=-1)
    thread_counts = _threads(threads)
    # Heavy imports come after the arguments are known to be right.
    from compress.model_files.artifacts import is_dense
    from export.bundle.contents import ENCODER, FLOAT, INT8, OF_A_LOADER, embeds
    from export.bundle.int8_gate import CosineLimits, Int8Limits, Limits, PixelLimits
    from export.bundle.manifest import bundle_of, check_manifest
    from export.verify import checks, comparisons
    from export.verify.verdict import failures, json_rows, remarks

    bundle = bundle_of(bundle)
    manifest = check_manifest(bundle)
    opsets = checks.check_graphs(bundle, manifest)
    student = checks.load_consistent(bundle)
    size = student.description["preprocessing"]["image_size"]
    rows: list[comparisons.Row] = []
    encoder: list[comparisons.EncoderRow] = []
    not_compared = None
    if dataset is None and manifest.data.get("name") == OF_A_LOADER:
        if data is not None:
            raise UserError(f"{LOADER_ONLY}; leave out --data")
        not_compared = LOADER_ONLY
    else:
        dataset = dataset or checks.open_manifest_data(manifest.data, data, image_size=size)
        checks.require_same_data(bundle, student, dataset)
        settings = comparisons.ComparisonSettings(images, batch, thread_counts)
        files = [name for name in (FLOAT, INT8) if name in opsets]
        rows = list(comparisons.student_rows(bundle, files, student, dataset, settings))
        if ENCODER in opsets:
            encoder = list(comparisons.encoder_rows(bundle, dataset, settings))
    int8 = Limits(
        Int8Limits(max_top1_drop, min_agreement_percent, max_difference),
        CosineLimits(min_mean_cosine, min_low_cosine),
        PixelLimits(max_miou_drop, min_agreement_percent),
    )
    if is_dense(student.description):
        limits = pixels
    return {
        "bundle": str(bundle),
        "student": manifest.student,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.files),
        "opsets": opsets,
        "int8": manifest.int8,
        "limits": {**limits, **cosines} if embeds(student.description) else limits,
        "rows": json_rows(rows),
        "encoder": json_rows(encoder),
        "remarks": remarks(rows, int8),
        "not_compared": not_compared,
        "failures": [
            *checks.check_script(bundle, manifest),
            *checks.check_weights(bundle, manifest),
            *checks.check_flavour(bundle, manifest),
            *checks.check_interfaces(bundle, manifest),
            *failures(rows, encoder, tolerance=tolerance, int8=int8),
        ],
    }


def _check_numbers(numbers: Mapping[str, float], *, least: int) -> None:
    for name, number in numbers.items():
        if not number >= least:  # also where it is NaN
            raise UserError(f"--{name.replace('_', '-')} {number}: give {least} or more")


def _threads(counts: Sequence[int] | None) -> tuple[int, ...]:
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if counts is None:
        return tuple(count for count in (1, 2) if count <= available)
    for count in counts:
        if not 1 <= count <= available:
            raise UserError(
                f"--threads {count}: this machine has {available}; give 1 to {available}"
            )
    return tuple(sorted({*counts}))

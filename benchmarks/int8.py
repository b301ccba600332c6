"""Accuracy, agreement and latency of int8 files on this machine, by kind of file.

    python benchmarks/int8.py RUN[:STUDENT] ... [--batch 1] [--rounds 300]

For each student of a run directory: the float file, int8 files of 7-bit and of 8-bit weights, and
TensorRT's flavour, calibrated (min-max) on 512 training images, on the kernels of this machine and
exactly as they are written (ONNX Runtime without graph optimisation, so that nothing is fused).
Differences are those of logits on the test split, relative to the largest logit. Latency is one
interleaved run of all files on one thread.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from compress.accounting import measure_latency
from compress.model_files.artifacts import load_student
from compress.onnx import open_session, run_session
from compress.recipe.files import load_resolved
from compress.recipe.schema import Int8
from export.bundle.int8_search import quantize_with
from export.bundle.request import BundleRequest, compare_file
from export.onnx import export_onnx
from export.stage import bundle_request

KINDS = {
    "7 bits": Int8(),
    "8 bits": Int8(full_range=True),
    "TensorRT's flavour": Int8(flavour="tensorrt"),
}


def processor() -> str:
    """Name and integer instructions of this machine's processor (Linux)."""
    text = Path("/proc/cpuinfo").read_text()
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in values.items()}
    known = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name')} ({', '.join(flags)})"


def request_of(text: str) -> BundleRequest:
    """The export request of RUN:STUDENT, or of what RUN ships."""
    run, _, label = text.partition(":")
    recipe = load_resolved(Path(run))
    label = label or recipe.distill.method.label or recipe.distill.method.name
    student = load_student(Path(run) / "distill" / label)
    return bundle_request(label, student, Path(run), recipe, recipe.export)


def rows(text: str, batch: int, rounds: int) -> None:
    """Print a student's rows."""
    request = request_of(text)
    described = request.student.description
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = tuple(described["input_shape"])
        export_onnx(
            request.student.network,
            folder / "student.onnx",
            input_shape=shape,
            class_names=described["class_names"],
            preprocessing=described["preprocessing"],
            fingerprint="",
        )
        sessions = {"float": open_session(folder / "student.onnx", threads=1)}
        numbers = {"float": compare_file(request, folder / "student.onnx", request.data.test)}
        for kind, settings in KINDS.items():
            path = folder / f"{kind}.onnx"
            quantize_with(request, settings, folder, path)
            for exact in (False, True):
                title = f"{kind}, exact" if exact else kind
                sessions[title] = open_session(path, threads=1, exact=exact)
                numbers[title] = compare_file(request, path, request.data.test, exact=exact)
        images = np.zeros((batch, *shape), np.float32)
        calls = {title: partial(run_session, s, images) for title, s in sessions.items()}
        timed = measure_latency(calls, warmup=20, rounds=rounds)
    network = described["architecture"]["name"]
    for title, parity in numbers.items():
        print(
            f"| {network} ({text.rpartition('/')[2]}) | {title} | {parity.onnx_top1_percent:.2f} | "
            f"{parity.top1_agreement_percent:.2f} | {parity.relative_difference:.3f} | "
            f"{timed[title].as_dict()['median_ms']:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    print(f"{processor()}, onnxruntime {onnxruntime.__version__}, batch {args.batch}\n")
    print("| network | file | top-1, % | same class, % | largest difference | ms |")
    print("|---|---|---:|---:|---:|---:|")
    for text in args.runs:
        rows(text, args.batch, args.rounds)


if __name__ == "__main__":
    main()

"""A GPU's proof, in pieces that can be stopped: tests, steps against the plain loop, the real run.

    python benchmarks/gpu.py --out FOLDER --data FOLDER [--minutes 9] [--pieces tests steps run]
        [--methods kd simkd crd] [--torchdistill PYTHON] [--set KEY=VALUE ...]

`tests` are those of tests/gpu, `steps` is step.py on the GPU, `run` is pipelines/simkd_cifar.yaml
(resnet32x4, then SimKD, KD and the student alone into resnet8x4; 240 epochs each) with the changes
of `--set`. Called again with the same FOLDER, pieces that are done are skipped and the run goes on
after its last epoch: so it fits machines that are lent for minutes. After each call FOLDER/gpu.md
says what was measured so far.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from compress.environment import environment
from compress.storage.files import read_json

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "pipelines" / "simkd_cifar.yaml"
VARIANTS = ("engine", "compiled", "bfloat16", "mixed")
# Seconds that a stopped run has to write its checkpoint.
LAST_WORDS = 20


def main() -> None:
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: there is no GPU here that torch can use")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    try:
        for name in options.pieces:
            PIECES[name](options, end)
    finally:
        (options.out / "gpu.md").write_text("\n".join(_report(options.out)) + "\n")
        print((options.out / "gpu.md").read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="results, and the run directory")
    add("--data", type=Path, required=True, help="folder with CIFAR-100 in its official layout")
    add("--minutes", type=float, default=9, help="stop then; the next call goes on")
    add("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    add("--methods", nargs="+", default=["kd", "simkd", "crd"], help="those of step.py")
    add("--rounds", type=int, default=10)
    add("--steps", type=int, default=50, help="of a candidate in a round")
    add("--profile", action="store_true", help="write torch.profiler's tables, too")
    add("--torchdistill", help="Python of an environment that has torchdistill")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    return parser.parse_args()


def _tests(options: argparse.Namespace, end: float) -> None:
    """The tests that need a GPU; their last lines are kept."""
    log = options.out / "tests.txt"
    if log.is_file():
        return
    workers = str(min(6, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "tests/gpu"]
    command += ["-W", "ignore::DeprecationWarning"]  # of torch itself, in other versions
    command += ["-p", "no:benchmark"]  # where that plugin is, it warns of `-n`
    done = _run(command, options.out / "tests.partial", end, cwd=ROOT)
    if done is not None:
        (options.out / "tests.partial").rename(log)


def _steps(options: argparse.Namespace, end: float) -> None:
    """Steps per second of each method, a file each."""
    for method in options.methods:
        file = options.out / f"steps-{method}.json"
        if file.is_file():
            continue
        command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--device", "cuda"]
        command += ["--methods", method, "--rounds", str(options.rounds)]
        command += ["--steps", str(options.steps), "--threads", "4", "--data", str(options.data)]
        command += ["--engine", *VARIANTS, "--json", str(file)]
        if options.profile:
            command += ["--profile", str(options.out / f"profile-{method}.txt")]
        if options.torchdistill:
            command += ["--torchdistill", options.torchdistill]
        _run(command, options.out / f"steps-{method}.txt", end)


def _pipeline(options: argparse.Namespace, end: float) -> None:
    """The recipe, stopped when time is up."""
    changes = [f"data.root={options.data.resolve()}", *options.set]
    command = [sys.executable, "-m", "compress.pipeline", str(RECIPE), "--device", "cuda"]
    command += ["--out", str(options.out / "run")]
    command += [word for change in changes for word in ("--set", change)]
    _run(command, options.out / "run.txt", end - LAST_WORDS)


PIECES: Mapping[str, Callable[[argparse.Namespace, float], None]] = {
    "tests": _tests,
    "steps": _steps,
    "run": _pipeline,
}


def _run(command: list[str], log: Path, end: float, cwd: Path | None = None) -> int | None:
    """The exit code of a command, whose output goes to a file; None where it had to be stopped."""
    left = end - time.monotonic()
    if left <= 0:
        return None
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return None


def _report(out: Path) -> Iterator[str]:
    """What was measured, in Markdown."""
    yield "# On a GPU\n"
    known = environment(torch.device("cuda"))
    yield ", ".join(f"{key} {value}" for key, value in known.items()) + ".\n"
    tests = out / "tests.txt"
    if tests.is_file():
        yield f"Tests of tests/gpu: {tests.read_text().strip().splitlines()[-1].strip('= ')}.\n"
    for file in sorted(out.glob("steps-*.json")):
        yield from _step_table(read_json(file))
    yield from _run_table(out / "run")


def _step_table(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Steps per second: {', '.join(result['methods'])}\n"
    yield f"    {result['command']}\n"
    yield "| candidate | steps/s (quartiles) | times plain | times plain without loading | MB |"
    yield "|---|---|---|---|---|"
    for method in result["methods"].values():
        for name, row in method["candidates"].items():
            keys = ("steps_per_second", "ratio to plain", "ratio to plain, no loading")
            cells = [_spread(row[key]) if key in row else "" for key in keys]
            yield f"| {name} | {' | '.join(cells)} | {row['peak_mb']:,} |"
        for name, reason in method["failed"].items():
            yield f"| {name} | not measured: {reason} | | | |"
    yield ""


def _spread(row: Mapping[str, float]) -> str:
    return f"{row['median']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"


def _run_table(run: Path) -> Iterator[str]:
    """Each training of the run: epochs, seconds of one (median), last and best accuracy."""
    histories = sorted(run.glob("*/**/metrics.jsonl"))
    if not histories:
        return
    yield "## The run\n"
    yield "| training | epochs | seconds an epoch | last top-1 % | best on test % |"
    yield "|---|---|---|---|---|"
    for file in histories:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        if not rows or "superseded" in file.parts:
            continue
        seconds = statistics.median(row["seconds"] for row in rows)
        top1 = [row.get("top1_percent", float("nan")) for row in rows]
        name = file.parent.relative_to(run)
        yield f"| {name} | {len(rows)} | {seconds:.2f} | {top1[-1]:.2f} | {max(top1):.2f} |"
    yield ""


if __name__ == "__main__":
    main()

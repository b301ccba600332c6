"""Steps per second of distillation, resnet8x4 <- resnet32x4 at batch 64, against other loops.

    python benchmarks/step.py [--rounds N] [--methods kd crd simkd] [--threads 2] [--data FOLDER]
        [--torchdistill PYTHON] [--engine VARIANT ...] [--json FILE] [--profile FILE]

Candidates: `plain` (plain_loop.py, the frozen loop of the field), `plain, no loading` (the same
with ready batches, and CRD's negatives drawn beforehand), `torchdistill` where `--torchdistill`
names the Python of an environment that has it, and the engine (engine_loop.py) in its variants.
Each is a process of its own. In a round each does `--steps` steps in turn while all others stand
still, data loaders' workers included; the order is reversed every other round, and the first round
is not counted. Ratios are of the same round. Without `--data` pixels are random.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pair
import torch
from engine import VARIANTS
from turns import Turns, interleaved, spread

from compress.environment import environment

HERE = Path(__file__).resolve().parent
PLAIN, READY = "plain", "plain, no loading"


def main() -> None:
    options = _options()
    before = os.getloadavg()
    found: dict[str, Any] = {"methods": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = pair.cifar100(options.data) if options.data else pair.random_data(options.images)
        pair.write(folder, data)
        for method in options.methods:
            commands = _commands(method, folder, options)
            turns, failed = interleaved(
                commands,
                folder,
                rounds=options.rounds,
                steps=options.steps,
                threads=options.threads,
            )
            result = {key: _summary(key, turns, options.steps) for key in turns}
            found["methods"][method] = {"candidates": result, "failed": failed}
            print(_table(method, found["methods"][method]), flush=True)
            if options.profile:
                _profile(method, folder, options)
    torch.set_num_threads(options.threads)
    found |= {"images": "CIFAR-100" if options.data else f"{options.images} of random pixels"}
    found |= {key: getattr(options, key) for key in ("rounds", "steps", "threads")}
    found |= {"batch": pair.BATCH, "environment": environment(torch.device(options.device))}
    found |= {"load_average": {"before": before[0], "after": os.getloadavg()[0]}}
    found |= {"command": " ".join(["python", *sys.argv])}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8, help="steps of a candidate in a round")
    parser.add_argument("--methods", nargs="+", choices=pair.WEIGHTS, default=list(pair.WEIGHTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-100 in its official layout")
    parser.add_argument("--images", type=int, default=50_000, help="how many random ones")
    parser.add_argument("--torchdistill", help="Python of an environment that has torchdistill")
    parser.add_argument("--engine", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--profile", type=Path, help="write torch.profiler's tables to this file")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is at least 2")
    return options


def _commands(method: str, folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    end = [method, str(folder), "--device", options.device]
    plain = [sys.executable, str(HERE / "plain_loop.py"), *end]
    commands = {PLAIN: plain, READY: [*plain, "--no-loading"]}
    if options.torchdistill:
        commands["torchdistill"] = [options.torchdistill, str(HERE / "torchdistill_loop.py"), *end]
    for name in options.engine:
        if method in VARIANTS[name].methods:
            commands[name] = [*_engine(method, folder, options), "--variant", name]
    return commands


def _engine(method: str, folder: Path, options: argparse.Namespace) -> list[str]:
    file = str(HERE / "engine_loop.py")
    return [sys.executable, file, method, str(folder), "--device", options.device]


def _summary(name: str, turns: Turns, steps: int) -> dict[str, Any]:
    seconds = {key: [turn["seconds"] for turn in rows] for key, rows in turns.items()}
    own = seconds[name]
    found: dict[str, Any] = {"steps_per_second": spread([steps / s for s in own])}
    for other in (PLAIN, READY):
        if other in seconds:
            ratios = [o / s for o, s in zip(seconds[other], own, strict=True)]
            found[f"ratio to {other}"] = spread(ratios)
    if "pieces" in turns[name][0]:
        found["shares"] = _shares(turns[name])
    return found | {"peak_mb": turns[name][-1]["peak_mb"], "seconds": own}


def _shares(turns: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each piece's share of a step, in percent; `overhead` is what is in no piece."""
    names = list(turns[0]["pieces"])
    shares = {n: [100 * t["pieces"].get(n, 0) / t["seconds"] for t in turns] for n in names}
    shares["overhead"] = [100 - sum(part) for part in zip(*shares.values(), strict=True)]
    return {name: spread(values) for name, values in shares.items()}


def _table(method: str, result: Mapping[str, Any]) -> str:
    """Medians with quartiles, one line per candidate."""
    head = f"{'steps/s':>24} {'times plain':>24} {'times no loading':>24} {'MB':>6}"
    lines = [f"\n{method:20}{head}"]
    for name, row in result["candidates"].items():
        keys = ("steps_per_second", f"ratio to {PLAIN}", f"ratio to {READY}")
        cells = [_cell(row[key]) if key in row else "" for key in keys]
        lines.append(f"{name:20}" + " ".join(f"{c:>24}" for c in cells) + f" {row['peak_mb']:6}")
    for name, row in result["candidates"].items():
        if "shares" in row:
            parts = ", ".join(f"{piece} {s['median']:.1f}" for piece, s in row["shares"].items())
            lines.append(f"{name}, % of a step: {parts}")
    return "\n".join(lines + [f"{name}: not measured: {e}" for name, e in result["failed"].items()])


def _cell(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['quartile_1']:.3f}-{spread['quartile_3']:.3f})"


def _profile(method: str, folder: Path, options: argparse.Namespace) -> None:
    threads = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [*_engine(method, folder, options), "--profile", str(options.steps)]
    done = subprocess.run(command, env=threads, capture_output=True, text=True, check=True)
    with options.profile.open("a") as file:
        file.write(f"{method}\n{done.stdout}\n")


if __name__ == "__main__":
    main()

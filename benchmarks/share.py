"""What a student costs that learns beside others from one teacher pass (`share_teacher`).

    python benchmarks/share.py [--students 1 4 9] [--method kd] [--rounds N] [--json FILE]

resnet8x4 <- resnet32x4, batch 64, random pixels. So many students are trained side by side by
engine_loop.py; as in step.py, each number of them is a process of its own and they take turns. The
cost of a student is the time of a step divided by the number of students, here relative to that of
one student alone in the same round, which is what separate runs take.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pair
import torch
from engine import VARIANTS
from turns import interleaved, spread

from compress.environment import environment

LOOP = Path(__file__).resolve().with_name("engine_loop.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", type=int, default=[1, 4, 9])
    parser.add_argument("--method", choices=pair.WEIGHTS, default="kd")
    parser.add_argument("--variant", choices=VARIANTS, default="engine")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps of each in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    counts = sorted({1, *options.students})
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair.write(folder, pair.random_data(options.images))
        base = [sys.executable, str(LOOP), options.method, str(folder)]
        base += ["--device", options.device, "--variant", options.variant]
        commands = {str(count): [*base, "--students", str(count)] for count in counts}
        turns, failed = interleaved(
            commands, folder, rounds=options.rounds, steps=options.steps, threads=options.threads
        )
    alone = [turn["seconds"] for turn in turns["1"]]
    found: dict[str, Any] = {"students": {}, "failed": failed}
    for count, rows in turns.items():
        seconds = [turn["seconds"] / int(count) for turn in rows]
        found["students"][count] = row = {
            "seconds_per_student_step": spread([s / options.steps for s in seconds]),
            "ratio_to_separate_runs": spread([s / a for s, a in zip(seconds, alone, strict=True)]),
            "peak_mb": rows[-1]["peak_mb"],
        }
        print(f"{count} students: {row}")
    for count, reason in failed.items():
        print(f"{count} students: not measured: {reason}")
    torch.set_num_threads(options.threads)
    chosen = ("method", "variant", "rounds", "steps", "threads")
    found |= {key: getattr(options, key) for key in chosen}
    found |= {"environment": environment(torch.device(options.device))}
    found |= {"load_average": {"before": before, "after": os.getloadavg()[0]}}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

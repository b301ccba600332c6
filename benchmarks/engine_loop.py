"""The engine's own loop on step.py's pair, in the variants that a recipe's `engine` chooses.

    python benchmarks/engine_loop.py METHOD FOLDER [--variant NAME] [--students N] [--device D]

is a candidate of step.py and share.py, see turns.py; with `--profile STEPS` it prints
torch.profiler's table of so many steps instead. What runs is `Training`, from the batch's
augmentation to `after_step`, see engine.py; its pieces are timed as they run, see pieces.py.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import pair
import torch
from engine import VARIANTS, Engine
from turns import paced

WARM_UP = 3  # steps before a profile


def profile(run: Iterator[object], count: int, device: str) -> str:
    """torch.profiler's table of `count` steps, after a few that are not in it."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU] if device == "cpu" else [activity.CPU, activity.CUDA]
    list(itertools.islice(run, WARM_UP))
    with torch.profiler.profile(activities=kinds) as profiler:
        list(itertools.islice(run, count))
    key = "self_cpu_time_total" if device == "cpu" else "self_cuda_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=pair.WEIGHTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, default="engine")
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", type=int, help="print a profile of so many steps")
    options = parser.parse_args()
    variant, device = VARIANTS[options.variant], options.device
    engine = Engine(options.method, options.folder, variant, device, students=options.students)
    run = engine.steps()
    if options.profile:
        print(profile(run, options.profile, device))
        return
    next(run)  # it stops before the first step
    engine.pieces.watch()
    for _ in paced(lambda: pair.settled(device), engine.pieces.taken):
        next(run)


if __name__ == "__main__":
    main()

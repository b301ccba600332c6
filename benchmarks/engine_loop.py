"""The engine's own loop on step.py's pair, in the variants that a recipe's `engine` chooses.

    python benchmarks/engine_loop.py METHOD FOLDER [--variant NAME] [--students N] [--device D]

is a candidate of step.py and share.py, see turns.py; with `--profile STEPS` it prints
torch.profiler's table of so many steps instead, and before it the milliseconds of a step, of making
its batch and of the teacher's forward pass without the profiler, and on a GPU of a step's kernels.
What runs is `Training`, from the batch's augmentation to `after_step`, see engine.py; its pieces
are timed as they run, see pieces.py.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pair
import torch
from engine import VARIANTS, Engine
from turns import paced

WARM_UP, WARM_UP_GPU = 3, 30  # steps before a profile
REPEATS = 5


def profile(engine: Engine, run: Iterator[object], count: int, device: str) -> str:
    """What `count` steps take without torch.profiler, and its table of as many."""
    list(itertools.islice(run, WARM_UP if device == "cpu" else WARM_UP_GPU))
    lines = [f"ms per step: {_timed(lambda: next(run), count, device)}"]
    every = (engine.batches.epoch(epoch) for epoch in itertools.count())
    feed = itertools.chain.from_iterable(every)
    batch = next(feed)
    lines.append(f"ms to make a batch: {_timed(lambda: next(feed), count, device)}")
    (teacher,) = engine.forwards(engine.modules[0].teacher_taps(None))
    for _ in range(WARM_UP):
        teacher(batch, 0)
    forward = _timed(lambda: teacher(batch, 0), count, device)
    lines.append(f"ms of a teacher's forward pass: {forward}")
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU] if device == "cpu" else [activity.CPU, activity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        list(itertools.islice(run, count))
        pair.settled(device)
    if device != "cpu":
        lines.append(_kernels(profiler, count))
    key = "self_cpu_time_total" if device == "cpu" else "self_cuda_time_total"
    return "\n".join([*lines, str(profiler.key_averages().table(sort_by=key, row_limit=40))])


def _timed(work: Callable[[], object], count: int, device: str) -> str:
    """Milliseconds of one, median and range of `REPEATS` times `count`."""
    measured = []
    for _ in range(REPEATS):
        pair.settled(device)
        start = time.perf_counter()
        for _ in range(count):
            work()
        pair.settled(device)
        measured.append(1000 * (time.perf_counter() - start) / count)
    measured.sort()
    return f"{measured[REPEATS // 2]:.3f} ({measured[0]:.3f} to {measured[-1]:.3f})"


def _kernels(profiler: torch.profiler.profile, steps: int) -> str:
    """How long the GPU had something to do, overlaps counted once."""
    on_gpu = [
        event.time_range
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    busy = end = 0.0
    for start, stop in sorted((span.start, span.end) for span in on_gpu):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return f"GPU busy: {busy / 1000 / steps:.3f} ms of a step, {len(on_gpu) / steps:.0f} kernels"


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
        print(profile(engine, run, options.profile, device))
        return
    next(run)  # it stops before the first step
    engine.pieces.watch()
    for _ in paced(lambda: pair.settled(device), engine.pieces.taken):
        next(run)


if __name__ == "__main__":
    main()

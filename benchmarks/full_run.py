"""A whole run of kd with the teacher's cache, from its first, cold epoch to its last.

    python benchmarks/full_run.py [--images 320] [--epochs 240] [--variant compiled-cold-cache]
        [--against compiled] [--data FOLDER] [--threads 2] [--json FILE]

resnet8x4 <- resnet32x4, batch 64, the engine's real loop. How often an image's view comes back
depends on the epoch and not on how many images there are, so few of them show a run of all. After
each block of epochs the frozen plain loop and the engine without a cache do some steps as well, on
all images: everything is in one process, and nothing stands still for long. Speeds relative to
theirs are of the same block.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pair
import plain_loop
import torch
from engine import VARIANTS, Engine
from turns import spread

from compress.environment import environment

SETTLING = 2  # steps of each before its timed ones
PLAIN = "plain"
CACHED = [name for name, variant in VARIANTS.items() if variant.cache == "cold"]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    before = os.getloadavg()[0]
    data = pair.cifar100(options.data) if options.data else pair.random_data(50_000)
    with tempfile.TemporaryDirectory() as name:
        few, all_images = Path(name) / "few", Path(name) / "all"
        for folder, kept in ((few, _first(data, options.images)), (all_images, data)):
            folder.mkdir()
            pair.write(folder, kept)
        cached = Engine("kd", few, VARIANTS[options.variant], "cpu", epochs=options.epochs)
        others = {
            options.against: Engine("kd", all_images, VARIANTS[options.against], "cpu").steps(),
            PLAIN: plain_loop.steps(
                "kd", pair.read(all_images), pair.networks(all_images), loading=True, device="cpu"
            ),
        }
        rows = list(_blocks(cached, others, options))
    found: dict[str, Any] = {"blocks": rows, "times": _summary(rows, others)}
    print(json.dumps(found["times"], indent=2))
    chosen = ("images", "epochs", "variant", "against", "steps", "threads")
    found |= {key: getattr(options, key) for key in chosen}
    found |= {"environment": environment(torch.device("cpu"))}
    found |= {"load_average": {"before": before, "after": os.getloadavg()[0]}}
    found |= {"command": " ".join(["python", *sys.argv])}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=320, help="a multiple of the batch, 64")
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--block", type=int, default=10, help="epochs of a block")
    parser.add_argument("--steps", type=int, default=8, help="of the others after a block")
    parser.add_argument("--variant", choices=CACHED, default="compiled-cold-cache")
    parser.add_argument("--against", choices=sorted({*VARIANTS} - {*CACHED}), default="compiled")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-100 in its official layout")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if options.epochs < options.block or options.images % pair.BATCH:
        parser.error(f"expected --epochs >= --block and --images a multiple of {pair.BATCH}")
    return options


def _first(data: pair.Data, images: int) -> pair.Data:
    return pair.Data(data.pixels[:images], data.labels[:images])


def _blocks(
    cached: Engine, others: dict[str, Iterator[object]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Per block of epochs: share of outputs that were there, steps per second of each candidate."""
    run = cached.steps()
    for steps in (run, *others.values()):
        _timed(steps, SETTLING)  # the first does nothing in the engine, which stops before a step
    (source,) = cached.cached
    per_block = len(cached.batches) * options.block
    for block in range(options.epochs // options.block):
        hits, misses = source.hits, source.misses
        speeds = {options.variant: _timed(run, per_block)}
        for name, steps in others.items():
            _timed(steps, SETTLING)
            speeds[name] = _timed(steps, options.steps)
        asked = source.hits + source.misses - hits - misses
        row = {"block": block, "hits": (source.hits - hits) / asked, "steps_per_second": speeds}
        print(json.dumps(row), flush=True)
        yield row


def _timed(steps: Iterator[object], count: int) -> float:
    """Steps per second of the next `count`; fewer, where the run ends before."""
    start = time.perf_counter()
    done = sum(1 for _ in itertools.islice(steps, count))
    return done / (time.perf_counter() - start)


def _summary(rows: list[dict[str, Any]], others: dict[str, Iterator[object]]) -> dict[str, Any]:
    """How many times the others' speed: of the whole run, and of its first and last block."""
    found: dict[str, Any] = {}
    for name in others:
        seconds = [1 / next(iter(row["steps_per_second"].values())) for row in rows]
        theirs = [1 / row["steps_per_second"][name] for row in rows]
        ratios = [b / a for a, b in zip(seconds, theirs, strict=True)]
        found[name] = {
            "whole_run": sum(theirs) / sum(seconds),
            "first_block": ratios[0],
            "last_block": ratios[-1],
            "steps_per_second": spread([1 / s for s in theirs]),
        }
    return found


if __name__ == "__main__":
    main()

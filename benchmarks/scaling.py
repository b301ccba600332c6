"""What CRD's, NST's and RKD's own terms cost as images, classes, batch and negatives grow.

    python benchmarks/scaling.py [--methods crd nst rkd] [--steps 7] [--json FILE]

Each row is a process of its own: forward, backward and `after_step` of the method alone, on made-up
taps of resnet8x4 <- resnet32x4, no networks. Time is the median of `--steps` steps after two.
Memory is the most that the process held beyond what it held before the method was built, in which
imports, labels, taps and a first tiny step of the method are (Linux: the mark is reset). Growth is
the slope of log cost against log size, over all rows and over the last two, beside the slope that
is not to be passed: each image has a row in CRD's banks, RKD compares angles of three images.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import spread

from compress.data.batch import Batch
from compress.environment import environment
from compress.methods import METHODS
from compress.methods.contract import Method, MethodContext, TeacherContext
from compress.seeding import seeded
from compress.taps import MapSpec, Taps, TapSpecs

BASE = {"images": 50_000, "classes": 100, "batch": 64, "negatives": 16384}
TINY = {"images": 64, "classes": 4, "batch": 4, "negatives": 8}
IMAGES, CLASSES = (25_000, 50_000, 100_000, 200_000, 400_000), (10, 100, 1000)
# Per method and size: its values, and the largest slope that it must have, of time and memory.
SWEEPS: dict[str, dict[str, tuple[tuple[int, ...], float]]] = {
    "crd": {
        "images": (IMAGES, 1),
        "classes": (CLASSES, 0),
        "batch": ((16, 32, 64, 128, 256), 1),
        "negatives": ((1024, 4096, 16384, 32768), 1),
    },
    "nst": {"images": (IMAGES, 0), "classes": (CLASSES, 0), "batch": ((16, 32, 64, 128, 256), 1)},
    "rkd": {"images": (IMAGES, 0), "classes": (CLASSES, 0), "batch": ((32, 64, 128, 256), 3)},
}
STAGES = ((64, 32), (128, 16), (256, 8))  # channels and pixels of a side
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--steps", type=int, default=7, help="steps timed of each row")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--row", nargs=2, metavar=("METHOD", "SIZES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row(options.row[0], json.loads(options.row[1]), options.steps)))
        return
    found: dict[str, Any] = {"rows": [], "growth": []}
    for method in options.methods:
        for size, (values, most) in SWEEPS[method].items():
            rows = [_in_process(method, size, value, options.steps) for value in values]
            growth = {"method": method, "size": size, "most": most, **_growth(rows, size)}
            found["rows"] += rows
            found["growth"].append(growth)
            print(_table(method, size, rows, growth), flush=True)
    found |= {"steps": options.steps, "load_average": os.getloadavg()[0]}
    found |= {"environment": environment(torch.device("cpu"))}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def row(method: str, sizes: Mapping[str, int], steps: int) -> dict[str, Any]:
    """Cost of a method at these sizes, measured in this process."""
    with seeded(0, "scaling"):
        _measured(_build(method, TINY), _batch(TINY), _shown(TINY["batch"]), 1)
        batch, shown = _batch(sizes), _shown(sizes["batch"])
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the most begins anew
        before = _held("VmRSS")
        built = _build(method, sizes)
        seconds = _measured(built, batch, shown, steps + WARM_UP)[WARM_UP:]
        most = _held("VmHWM") - before
    state = sum(tensor.nbytes for tensor in (*built.parameters(), *built.buffers()))
    return {
        "method": method,
        **sizes,
        "milliseconds": spread([1e3 * s for s in seconds]),
        "state_mb": round(state / 1e6, 3),
        "peak_mb": round(most / 1e6, 3),
    }


def _measured(method: Method, batch: Batch, shown: Sequence[Taps], steps: int) -> list[float]:
    student, teacher = shown
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        terms = method([student], [[teacher]], batch)
        torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        method.after_step()
        seconds.append(time.perf_counter() - start)
        for leaf in (*method.parameters(), *student.tensors("stages"), student.tensor("pooled")):
            leaf.grad = None
    return seconds


def _build(method: str, sizes: Mapping[str, int]) -> Method:
    stages = tuple(MapSpec(f"s{i}", c, p, p, 32 // p) for i, (c, p) in enumerate(STAGES))
    width = STAGES[-1][0]
    specs = TapSpecs(stages, stages, stages[-1], width, "fc", sizes["classes"])
    context = MethodContext(
        student=specs,
        teachers=(TeacherContext(specs, None, None),),
        num_classes=sizes["classes"],
        train_size=sizes["images"],
        labels=_labels(sizes),
        batch_size=sizes["batch"],
        steps_per_epoch=sizes["images"] // sizes["batch"],
        epochs=240,
    )
    own = {"negatives": sizes["negatives"]} if method == "crd" else {}
    return METHODS[method](context, **own).train()


def _labels(sizes: Mapping[str, int]) -> Tensor:
    return torch.arange(sizes["images"]) % sizes["classes"]


def _batch(sizes: Mapping[str, int]) -> Batch:
    index = torch.randperm(sizes["images"])[: sizes["batch"]]
    return Batch((), (), _labels(sizes)[index], index, epoch=0, step=0)


def _shown(count: int) -> tuple[Taps, Taps]:
    """Taps of the student, which get a gradient, and of the teacher."""

    def taps(learns: bool) -> Taps:
        maps = [torch.randn(count, c, p, p, requires_grad=learns) for c, p in STAGES]
        pooled = torch.randn(count, STAGES[-1][0], requires_grad=learns)
        return Taps(pooled=pooled, stages=maps)

    return taps(True), taps(False)


def _held(mark: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(mark))
    return int(line.split()[1]) * 1024


def _in_process(method: str, size: str, value: int, steps: int) -> dict[str, Any]:
    sizes = json.dumps({**BASE, size: value})
    command = [sys.executable, __file__, "--row", method, sizes, "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def _growth(rows: Sequence[Mapping[str, Any]], size: str) -> dict[str, float]:
    costs = {
        "time": [row["milliseconds"]["median"] for row in rows],
        "memory": [max(row["peak_mb"], 0.1) for row in rows],  # below that it is noise
    }
    sizes = [row[size] for row in rows]
    found = {}
    for name, values in costs.items():
        found[name] = slope(sizes, values)
        found[f"{name}_at_the_end"] = slope(sizes[-2:], values[-2:])
    return found


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent a of cost = b * size^a that fits best."""
    logs = [[math.log(v) for v in values] for values in (sizes, costs)]
    return round(statistics.linear_regression(*logs).slope, 3)


def _table(
    method: str, size: str, rows: Sequence[Mapping[str, Any]], growth: Mapping[str, Any]
) -> str:
    lines = [f"\n{method}: {size:>10} {'ms':>26} {'state, MB':>12} {'peak, MB':>12}"]
    for one in rows:
        ms = one["milliseconds"]
        cell = f"{ms['median']:.2f} ({ms['quartile_1']:.2f}-{ms['quartile_3']:.2f})"
        lines.append(
            f"     {one[size]:>10,} {cell:>26} {one['state_mb']:>12,.2f} {one['peak_mb']:>12,.2f}"
        )
    slopes = "time {time} (end {time_at_the_end}), memory {memory} (end {memory_at_the_end})"
    lines.append(f"     growth: {slopes.format_map(growth)}; at most {growth['most']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

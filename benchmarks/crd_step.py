"""What a CRD step costs: against a KD step of the same pair, and for banks of many images.

    python benchmarks/crd_step.py [--rounds 15] [--json FILE]
    python benchmarks/crd_step.py --images 1281167 --batch 256 [--rounds 5] [--json FILE]

The first times whole training steps (forward, backward, SGD, banks) of resnet8x4 <- resnet32x4 on
random pixels with 50,000 bank rows, 100 classes and K = 16384, `kd` and `crd` in turn, so that
whatever else the machine does falls on both; the processor's own time is told beside the wall's.
The second times what CRD adds to a step, without networks, and reports the largest memory that the
process held. With OMP_NUM_THREADS=1 other work disturbs least.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.data.batch import Batch
from compress.distill.module import Distillation
from compress.methods import METHODS
from compress.methods.contract import Method, MethodContext, teacher_context
from compress.models import build
from compress.taps import Taps
from compress.taps.discovery import discover
from compress.tasks import Classification

PAIR = ("resnet8x4", "resnet32x4")
SHAPE = (3, 32, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps timed of each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, help="time CRD alone with this many bank rows")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is at least 2")
    torch.manual_seed(0)
    if options.images is None:
        found = _pair(options.batch, options.rounds)
    else:
        found = _alone(options.images, options.batch, options.rounds)
    found |= {"rounds": options.rounds, "batch": options.batch, "threads": torch.get_num_threads()}
    found |= {"torch": torch.__version__, "python": platform.python_version()}
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _pair(size: int, rounds: int) -> dict[str, Any]:
    times = _timed({name: _step(name, size) for name in ("kd", "crd")}, rounds)
    found: dict[str, Any] = {}
    for clock, name in enumerate(("wall", "cpu")):
        kd, crd = ([1e3 * pair[clock] for pair in times[method]] for method in ("kd", "crd"))
        found[f"kd_{name}_ms"], found[f"crd_{name}_ms"] = _spread(kd), _spread(crd)
        ratio = statistics.median(crd) / statistics.median(kd)
        found[f"ratio_of_{name}_medians"] = round(ratio, 3)
        found[f"{name}_ratio_per_round"] = _spread([c / k for c, k in zip(crd, kd, strict=True)])
    return found


def _step(name: str, size: int) -> Callable[[int], None]:
    context, networks = _context(50_000, 100, size)
    student, teacher = networks
    method = METHODS[name](context)
    weights = method.protocols["crd"]
    module = Distillation(student, [teacher], method, weights, Classification(), kd_temperature=4)
    module.begin_phase(None, _batch(context, 0))
    module.train()
    learning = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(number: int) -> None:
        terms = module(_batch(context, number))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        module.after_step()

    return step


def _alone(images: int, size: int, rounds: int) -> dict[str, Any]:
    context, _ = _context(images, 1000 if images > 500_000 else 100, size)
    idle = _held()
    method = METHODS["crd"](context).train()
    built = _held()
    widths = context.student.pooled_width, context.teachers[0].taps.pooled_width
    shown = [torch.randn(size, width or 0) for width in widths]
    times = _timed({"step": lambda number: _alone_step(method, context, shown, number)}, rounds)
    return {
        "images": images,
        "remarks": method.notes(),
        "added_wall_ms": _spread([1e3 * wall for wall, _ in times["step"]]),
        "added_cpu_ms": _spread([1e3 * cpu for _, cpu in times["step"]]),
        "held_before_mb": idle,
        "held_with_banks_mb": built,
        "held_after_steps_mb": _held(),
    }


def _alone_step(
    method: Method, context: MethodContext, shown: list[torch.Tensor], number: int
) -> None:
    student, teacher = shown
    views = [[_taps(student.clone().requires_grad_())], [_taps(teacher)]]
    batch = _batch(context, number, pixels=False)
    method(views[0], [views[1]], batch)["crd"].backward()
    method.zero_grad(set_to_none=True)
    method.after_step()


def _taps(pooled: torch.Tensor) -> Taps:
    return Taps(pooled=pooled)


def _context(images: int, classes: int, size: int) -> tuple[MethodContext, list[torch.nn.Module]]:
    networks = [build(name, num_classes=classes, seed=0) for name in PAIR]
    student, teacher = (discover(n, SHAPE, p) for n, p in zip(networks, PAIR, strict=True))
    context = MethodContext(
        student=student,
        teachers=(teacher_context(networks[1], teacher),),
        num_classes=classes,
        train_size=images,
        labels=torch.arange(images) % classes,
        batch_size=size,
        steps_per_epoch=images // size,
        epochs=240,
    )
    return context, networks


def _batch(context: MethodContext, number: int, *, pixels: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(number)
    size = context.batch_size
    index = torch.randint(context.train_size, (size,), generator=generator)
    images = (torch.randn(size, *SHAPE, generator=generator),) if pixels else ()
    return Batch(images, (), context.labels[index], index, epoch=0, step=number)


def _timed(
    steps: dict[str, Callable[[int], None]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the wall and of the processor per step of each, in turn, after two rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(number)
            if number >= 2:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    found = {"median": middle, "quartile_1": low, "quartile_3": high, "lowest": min(values)}
    return {name: round(value, 3) for name, value in found.items()}


def _held() -> int:
    """The most memory that this process held so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


if __name__ == "__main__":
    main()

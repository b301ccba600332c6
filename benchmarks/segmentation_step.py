"""Steps per second of pixel-wise distillation, PSPNet over resnet8 <- resnet14x2, in turns.

    python benchmarks/segmentation_step.py [--rounds 5] [--steps 3] [--threads 2] [--json FILE]

`plain` is the field's loop: both networks eager, as they were built, the teacher in eval mode,
cross entropy with an auxiliary head and KL per pixel on enlarged logits, SGD. The engine's variants
are this project's step (`Distillation`, `OptimizerStep`) with the teacher folded and both networks
channels last, then compiled, then in bfloat16. All read the same ready batches of random pixels in
one process; in a round each does its steps in turn, the order is reversed every other round, and
the first round is not counted. Ratios are of the same round.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from compress.data import Batch
from compress.distill import Distillation
from compress.engine import OptimizerStep, TrainSettings
from compress.engine.compiling import compile_taps
from compress.environment import environment
from compress.methods import METHODS, LossWeights, MethodContext, NetworkForward, teacher_context
from compress.models import build
from compress.models.forward import lay_channels_last
from compress.models.segmentation.pyramid import auxiliary_head
from compress.taps import discover
from compress.tasks import Segmentation
from compress.teacher.inference import make_fast

CLASSES, BATCH = 11, 8
CPU = torch.device("cpu")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, options.crop, options.crop, generator=draw)
    labels = torch.randint(0, CLASSES, (BATCH, options.crop, options.crop), generator=draw)
    batch = Batch(
        (images,),
        (torch.zeros(BATCH, dtype=torch.int64),),
        labels,
        torch.arange(BATCH),
        0,
        0,
        counted=torch.tensor(labels.numel()),
    )
    candidates = {
        "plain": _plain(images, labels),
        "engine": _engine(batch, compiled=False, precision="float32"),
        "engine, compiled": _engine(batch, compiled=True, precision="float32"),
        "engine, bfloat16": _engine(batch, compiled=False, precision="bfloat16"),
        "engine, compiled, bfloat16": _engine(batch, compiled=True, precision="bfloat16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(options.rounds + 1):
        names = list(candidates)[:: -1 if number % 2 else 1]
        for name in names:
            start = time.perf_counter()
            for _ in range(options.steps):
                candidates[name]()
            if number:
                seconds[name].append((time.perf_counter() - start) / options.steps)
    rows = {}
    for name, times in seconds.items():
        ratios = [p / t for p, t in zip(seconds["plain"], times, strict=True)]
        rows[name] = {
            "steps_per_second": 1 / statistics.median(times),
            "times_plain": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        print(
            f"{name:28} {rows[name]['steps_per_second']:.2f} steps/s, "
            f"{rows[name]['times_plain']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x plain",
            flush=True,
        )
    if options.json:
        content = {"crop": options.crop, "rounds": options.rounds, "steps": options.steps}
        content |= {"rows": rows, "environment": environment(CPU)}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _networks() -> tuple[nn.Module, nn.Module]:
    teacher = build("pspnet", num_classes=CLASSES, encoder="resnet14x2", width=64, role="teacher")
    return build("pspnet", num_classes=CLASSES, encoder="resnet8", width=32), teacher.eval()


def _plain(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    student, teacher = _networks()
    seen: list[torch.Tensor] = []
    finer = student.get_submodule(str(student.auxiliary_path))
    finer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    head = auxiliary_head(32, CLASSES)
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    student.train(), head.train()

    def step() -> None:
        with torch.no_grad():
            targets = teacher(images)
        seen.clear()
        logits = student(images)
        size = labels.shape[-2:]
        loss = logits.new_zeros(())
        for weight, maps in ((1.0, logits), (0.4, head(seen[0]))):
            whole = interpolate(maps, size=size, mode="bilinear", align_corners=True)
            loss = loss + weight * cross_entropy(whole, labels, ignore_index=255)
        log_q, log_p = log_softmax(logits, 1), log_softmax(targets, 1)
        soft = kl_div(log_q, log_p, reduction="sum", log_target=True)
        loss = loss + soft / (log_q.numel() / CLASSES)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _engine(batch: Batch, *, compiled: bool, precision: str) -> Callable[[], None]:
    student, teacher = _networks()
    shape = (3, *batch.labels.shape[1:])
    shape = (shape[0], shape[1], shape[2])
    specs, known = (discover(n, shape, "network", dense=True) for n in (student, teacher))
    context = MethodContext(
        specs, (teacher_context(teacher, known),), CLASSES, BATCH, batch.index, BATCH, 1, 1
    )
    task = Segmentation()
    lay_channels_last(student, shape)
    module = Distillation(
        student,
        [copy.deepcopy(teacher)],
        METHODS["kd"](context, temperature=1.0),
        LossWeights(ce=1, kd=0, method=1),
        task,
        kd_temperature=1.0,
        auxiliary=task.auxiliary(specs),
    )
    fast = make_fast(teacher, known, ("logits",), compile=compiled, precision=precision, rows=BATCH)
    learner = None
    if compiled:
        learner = compile_taps(
            student, specs, module.student_taps, "student", wish="always", rows=BATCH
        )
    module.begin_phase(None, batch, student=learner, teachers=[NetworkForward(fast)])
    settings = TrainSettings(1, lr=0.01, batch_size=BATCH, precision=precision)
    learn = OptimizerStep(module.train(), settings, CPU)
    return lambda: learn(batch, 0.0, {})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crop", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser.parse_args()


if __name__ == "__main__":
    main()

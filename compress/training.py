"""THE loop: every network that learns in this project learns here.

A trainable is an `nn.Module` whose `forward(batch)` returns named scalar terms; the loop sums them
and steps the optimiser. It knows nothing of methods, tasks or metrics: what a batch is, what the
terms mean and how progress is judged come from outside.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint
from compress.console import bar, console, log
from compress.errors import UserError
from compress.randomness import seeded


def multistep(
    *, milestones: tuple[float, ...] = (0.625, 0.75, 0.875), gamma: float = 0.1
) -> Callable[[float], float]:
    """Multiply by gamma after each milestone, a share of the run (150, 180, 210 of 240)."""
    if not all(0 <= m <= 1 for m in milestones):
        raise ValueError(f"milestones are fractions of the run, from 0 to 1; got {milestones}")
    return lambda progress: gamma ** sum(progress >= m - 1e-9 for m in milestones)


def cosine() -> Callable[[float], float]:
    """Half a cosine from 1 to 0 (SGDR without restarts, Loshchilov & Hutter 2017)."""
    return lambda progress: 0.5 * (1 + math.cos(math.pi * progress))


def poly(*, power: float = 0.9) -> Callable[[float], float]:
    """(1 - progress)^power, usual for segmentation."""
    return lambda progress: (1 - progress) ** power


def constant() -> Callable[[float], float]:
    """The same learning rate throughout."""
    return lambda progress: 1.0


SCHEDULES: Mapping[str, Callable[..., Callable[[float], float]]] = {
    "multistep": multistep,
    "cosine": cosine,
    "poly": poly,
    "constant": constant,
}


def sgd(parameters: list[nn.Parameter], settings: "Settings") -> torch.optim.Optimizer:
    """SGD with momentum, as every paper of the CIFAR protocol uses it."""
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def adamw(parameters: list[nn.Parameter], settings: "Settings") -> torch.optim.Optimizer:
    """AdamW with its usual betas; `momentum` and `nesterov` do not apply."""
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], "Settings"], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
}


@dataclass(frozen=True)
class Settings:
    """How to train. `schedule` maps the share of the run that is done to a factor of `lr`."""

    epochs: int
    lr: float
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Callable[[float], float] = field(default_factory=multistep)


class Batches(Protocol):
    """Where batches come from: each epoch's are a pure function of its number."""

    def __len__(self) -> int:
        """Steps per epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, counted from 0."""
        ...


def train(
    module: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    directory: Path,
    role: str,
    seed: int,
    device: torch.device,
    evaluate: Callable[[], dict[str, float]] | None = None,
    keep_best: str | None = None,
) -> list[dict[str, Any]]:
    """Train `module` in place and return one row per epoch.

    Args:
        module: `module(batch)` returns a mapping of named scalar terms, which are summed; an
            `after_step()` of it, if any, is called after each step.
        batches: see `Batches`.
        directory: gets `metrics.jsonl` and `checkpoint.safetensors` after every epoch. A run that
            was killed continues after its last whole epoch, bit for bit (CPU).
        role: names this training; with `seed` and the epoch it keys the global generators.
        evaluate: returns metrics in percent; called after every epoch.
        keep_best: a metric of `evaluate`; `module` ends with the weights of its highest value
            instead of the last epoch's.

    Raises:
        UserError: the loss is no longer finite.
    """
    module.to(device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[settings.optimizer](parameters, settings)
    checkpoint = Checkpoint(directory, module, optimizer)
    history = checkpoint.resume()
    if history and len(history) < settings.epochs:
        log(f"  {role}: continues after epoch {len(history)}")
    steps = len(batches)
    after_step = getattr(module, "after_step", None)
    with bar(f"  {role}", settings.epochs * steps) as advance:
        advance(len(history) * steps)
        for epoch in range(len(history), settings.epochs):
            start = time.perf_counter()
            module.train()
            totals: dict[str, Tensor] = {}
            with seeded(seed, role, epoch):
                for step, batch in enumerate(batches.epoch(epoch)):
                    progress = (epoch + step / steps) / settings.epochs
                    for group in optimizer.param_groups:
                        group["lr"] = settings.lr * settings.schedule(progress)
                    terms = module(batch)
                    optimizer.zero_grad(set_to_none=True)
                    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if after_step is not None:
                        after_step()
                    for name, value in terms.items():
                        totals[name] = totals.get(name, 0) + value.detach()  # stays on the device
                    advance()
            row = _epoch_row(epoch, steps, optimizer, totals, role)
            if evaluate is not None:
                row |= evaluate()
            row["seconds"] = round(time.perf_counter() - start, 3)
            history.append(row)
            checkpoint.save(history, keep_best)
            advance(0, note=_note(row))
            if not console.is_terminal:  # no bar there to watch
                log(f"  {role} epoch {epoch + 1}/{settings.epochs}: {_note(row)}")
    if keep_best is not None:
        checkpoint.restore_best(history, keep_best)
    return history


def _epoch_row(
    epoch: int, steps: int, optimizer: torch.optim.Optimizer, totals: dict[str, Tensor], role: str
) -> dict[str, Any]:
    """One line of `metrics.jsonl`; the only place of an epoch that waits for the device."""
    terms = {name: float(total) / steps for name, total in totals.items()}
    if not all(map(math.isfinite, terms.values())):
        raise UserError(
            f"{role}: the loss is no longer finite in epoch {epoch + 1} ({terms}); "
            "lower the learning rate, or look for damaged images"
        )
    lr = optimizer.param_groups[0]["lr"]
    return {"epoch": epoch + 1, "lr": lr, "loss": sum(terms.values()), "terms": terms}


def _note(row: Mapping[str, Any]) -> str:
    metrics = [f"{k.removesuffix('_percent')} {v:.2f} %" for k, v in row.items() if "percent" in k]
    return " ".join([f"loss {row['loss']:.3f}", *metrics])

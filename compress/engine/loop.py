"""THE loop: every network that learns in this project learns here.

A trainable is an `nn.Module` whose `forward(batch)` returns named scalar terms; the loop sums them
and steps the optimiser. It knows nothing of methods, tasks or metrics: what a batch holds, what the
terms mean and how progress is evaluated come from outside.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.console.messages import bar, log, note, shows_bars
from compress.data.batch import BatchSource
from compress.distributed.batchnorm import synchronised_batchnorm
from compress.distributed.collectives import (
    all_reduce,
    all_reduce_gradients,
    is_main_process,
    rank,
    world_size,
)
from compress.engine.checkpoint import Checkpoint, Selection
from compress.engine.optimization import (
    ParameterGroup,
    TrainSettings,
    grouped,
    make_optimizer,
)
from compress.errors import UserError
from compress.seeding import seeded
from compress.text import duration
from compress.trackers import recall, record

_LONG = 300.0  # seconds from which a training says beforehand how long it will take


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Networks inside compute in this precision; float32 switches autocast off."""
    is_half = precision != "float32"
    dtype = getattr(torch, precision) if is_half else None
    with torch.autocast(device.type, dtype, enabled=is_half):
        yield


# What a training is about to do: main training (0), a phase before (below 0) or after it; epoch,
# step.
Position = tuple[int, int, int]
History = list[dict[str, Any]]


def train(
    module: nn.Module, batches: BatchSource, settings: TrainSettings, **options: Any
) -> History:
    """Train `module` in place and return one row per epoch; arguments are those of `Training`."""
    return Training(module, batches, settings, **options).run()


class Training:
    """The training of one module in place, saved after every epoch and continued from there."""

    def __init__(
        self,
        module: nn.Module,
        batches: BatchSource,
        settings: TrainSettings,
        *,
        directory: Path,
        role: str,
        seed: int,
        device: torch.device,
        evaluate: Callable[[], dict[str, float]] | None = None,
        keep_best: Selection | None = None,
        fingerprint: str = "",
    ) -> None:
        """Load what was trained before.

        Args:
            module: `module(batch)` returns a mapping of named scalar terms, which are summed; an
                `after_step()` of it, if any, is called after each step, and `parameter_groups()`
                gives parameters settings of their own.
            batches: where several processes train, each gets its part of a batch, whose `share`
                weighs its terms.
            directory: gets `metrics.jsonl` and `checkpoint.safetensors` after every epoch. A run
                that was killed continues after its last whole epoch, bit for bit (CPU).
            role: names this training; with `seed` and the epoch it keys the global generators.
            evaluate: returns metrics in percent; called after every epoch.
            keep_best: by a metric of `evaluate`; `module` ends with the weights of its best epoch
                instead of the last one's.
            fingerprint: of what the training depends on; its checkpoints name it, and one of
                another training is not continued.
        """
        self.module = module.to(device)
        self.batches = batches
        self.settings = settings
        self.role = role
        self.evaluate = evaluate
        self.keep_best = keep_best
        self._learn = OptimizerStep(module, settings, device)
        self._checkpoint = self._learn.checkpoint_in(
            directory, role=role, seed=seed, fingerprint=fingerprint
        )
        self.history = self._resume()
        self._first_epoch = len(self.history)
        self._steps = len(batches)
        # Of several processes each draws its own, as a batch of one process has rows of its own.
        self._key = (seed, role) if is_main_process() else (seed, role, rank())
        self._advance: Callable[..., None]
        self._feed: Iterator[Any]
        self._totals: dict[str, Tensor] = {}

    def _resume(self) -> History:
        """Load what was trained before."""
        history = self._checkpoint.resume(self.keep_best)
        recall(self.role, history)
        if history and len(history) < self.settings.epochs:
            log(f"  {self.role}: continues after epoch {len(history)}")
        return history

    def run(self) -> History:
        """Take every step that is left; returns one row per epoch.

        Raises:
            UserError: the loss is no longer finite.
        """
        with self._prepared():
            for epoch in range(len(self.history), self.settings.epochs):
                with self._epoch(epoch):
                    for step in range(self._steps):
                        self._take(epoch, step)
        return self._finished()

    def run_in_turns(self, order: int = 0) -> Generator[Position, None, History]:
        """`run`, stopping before each step, so that trainings can take turns at the same batches.

        `order`: of several trainings that belong together, 0 for the main one, below 0 for phases
        before it, above 0 for those after it.
        """
        with self._prepared():
            for epoch in range(len(self.history), self.settings.epochs):
                with self._epoch(epoch):
                    for step in range(self._steps):
                        yield order, epoch, step
                        self._take(epoch, step)
        return self._finished()

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """A bar, and batch norms that see the rows of all processes."""
        steps = self.settings.epochs * self._steps
        with bar(f"  {self.role}", steps) as advance, synchronised_batchnorm(self.module):
            advance(len(self.history) * self._steps)
            self._advance = advance
            yield

    @contextmanager
    def _epoch(self, epoch: int) -> Iterator[None]:
        """The random numbers of an epoch; after its steps its row, its metrics, its checkpoint."""
        start = time.perf_counter()
        self.module.train()
        self._totals = {}
        of_epochs = f"epoch {epoch + 1}/{self.settings.epochs}"
        self._advance(0, place=of_epochs)
        with seeded(*self._key, epoch):
            self._feed = self.batches.epoch(epoch)
            yield
        row = _epoch_row(epoch, self._steps, self._learn.optimizer, self._totals, self.role)
        if self.evaluate is not None:
            row |= self.evaluate()
        row["seconds"] = round(time.perf_counter() - start, 3)
        self.history.append(row)
        self._checkpoint.save(self.history, self.keep_best)
        record(self.role, row)
        self._advance(0, note=_note(row))
        # Where a bar shows it, the line is for log.txt alone.
        tell = note if shows_bars() and is_main_process() else log
        tell(f"  {self.role} {of_epochs}: {_note(row)}")

    def _take(self, epoch: int, step: int) -> None:
        """Take one step."""
        progress = (epoch + step / self._steps) / self.settings.epochs
        start = time.perf_counter()
        self._learn(next(self._feed), progress, self._totals)
        self._advance()
        self._foretell(epoch, step, time.perf_counter() - start)

    def _foretell(self, epoch: int, step: int, seconds: float) -> None:
        """Say how long a training will take that takes long, where no bar does.

        By its third step, on a CPU: a GPU goes on when a step has returned.
        """
        is_third = epoch == self._first_epoch and step == min(2, self._steps - 1)
        if not is_third or self._learn.device.type != "cpu" or shows_bars():
            return
        left = seconds * (self.settings.epochs - epoch) * self._steps
        if left > _LONG:
            log(f"  {self.role}: about {duration(left)} for {self.settings.epochs} epochs here")

    def _finished(self) -> History:
        """Load the weights that count, and drop what only an unfinished training needs."""
        self._checkpoint.drop_previous()
        if self.keep_best is not None:
            self._checkpoint.restore_best(self.history, self.keep_best)
        return self.history


class OptimizerStep:
    """One step of the optimiser: forward, backward, gradients of all processes, update."""

    def __init__(self, module: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        self.module = module
        self.settings = settings
        self.device = device
        own: Iterable[ParameterGroup] = getattr(module, "parameter_groups", tuple)()
        self.groups = grouped(module.parameters(), own)
        self.parameters = [p for group in self.groups for p in group.parameters]
        self.optimizer = make_optimizer(self.groups, settings)
        # Small gradients vanish in float16: they are scaled up, and steps that overflow left out.
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")

    def checkpoint_in(
        self, directory: Path, *, role: str, seed: int, fingerprint: str
    ) -> Checkpoint:
        """The state of module and optimiser in a folder; the others are those of `Training`."""
        return Checkpoint(
            directory,
            self.module,
            self.optimizer,
            self.scaler,
            role=role,
            seed=seed,
            fingerprint=fingerprint,
        )

    def __call__(self, batch: Any, progress: float, totals: dict[str, Tensor]) -> None:
        """Learn from a batch; its terms are added to `totals`, which stay on the device."""
        settings = self.settings
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = own.rate(settings, progress)
        self.optimizer.zero_grad(set_to_none=True)
        parts = settings.accumulate
        if parts > 1:  # of two images or more, for batch norm, and of one in every process
            parts = max(1, min(parts, batch.whole // max(2, world_size())))
        for part in batch.split(parts) if parts > 1 else [batch]:
            share = getattr(part, "share", 1.0)
            with autocast(self.device, settings.precision):
                terms = self.module(part)
            loss = torch.stack([*terms.values()]).sum()
            self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach() * share
        all_reduce_gradients(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        after_step = getattr(self.module, "after_step", None)
        if after_step is not None:
            after_step()


def _epoch_row(
    epoch: int, steps: int, optimizer: torch.optim.Optimizer, totals: dict[str, Tensor], role: str
) -> dict[str, Any]:
    """One line of `metrics.jsonl`; the only place of an epoch that waits for the device."""
    sums = all_reduce(torch.stack([*totals.values()])).tolist()
    terms = {name: total / steps for name, total in zip(totals, sums, strict=True)}
    if not all(map(math.isfinite, terms.values())):
        raise UserError(
            f"{role}: the loss is no longer finite in epoch {epoch + 1} ({terms}); "
            "lower the learning rate, or look for damaged images"
        )
    lr = optimizer.param_groups[0]["lr"]
    return {"epoch": epoch + 1, "lr": lr, "loss": sum(terms.values()), "terms": terms}


def _note(row: Mapping[str, Any]) -> str:
    metrics = [f"{k.replace('_percent', '')} {v:.2f} %" for k, v in row.items() if "percent" in k]
    return " ".join([f"loss {row['loss']:.3f}", *metrics])

"""Trackers of a recipe: each epoch's row goes to TensorBoard, W&B or MLflow as it is made.

Each tracker writes through its own library. accelerate's trackers number the steps of a whole run,
while here each network counts its own epochs from 1: W&B would drop those of every network but the
first. `metrics.jsonl` holds the same rows whatever a tracker does.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.distributed.collectives import rank
from compress.trackers.base import Place, Tracker, TrackerPart
from compress.trackers.mlflow import MLflow
from compress.trackers.tensorboard import TensorBoard
from compress.trackers.wandb import WeightsAndBiases

TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}

# Those of the run that this very context (a thread, a task) is at; one that fails is taken out.
_open: ContextVar[dict[str, Tracker] | None] = ContextVar("trackers", default=None)


def lacks(name: str) -> str | None:
    """A sentence on what to install for a tracker; None where it can be used."""
    tracker = TRACKERS[name]
    spec = importlib.util.find_spec(tracker.package)
    if spec is not None and spec.origin is not None:  # a mere folder of that name has none
        return None
    return f"{name} needs the package {tracker.package}; install it: pip install {tracker.install}"


@contextmanager
def track_to(
    parts: Sequence[TrackerPart], folder: Path, run_name: str, recipe: Mapping[str, Any]
) -> Iterator[None]:
    """Inside the block `record` writes to these trackers; only the first process of several does.

    Args:
        parts: of a recipe that has been checked.
        folder: the run directory.
        recipe: as plain values; W&B and MLflow show it beside the curves.
    """
    place = Place(folder, run_name, recipe)
    trackers: dict[str, Tracker] = {}
    for part in parts if rank() == 0 else ():
        with _survived(part.name):
            trackers[part.name] = TRACKERS[part.name](place, **part.arguments)
    token = _open.set(trackers)
    failed = True
    try:
        yield
        failed = False
    finally:
        _open.reset(token)
        for name, tracker in trackers.items():
            with _survived(name):
                tracker.close(failed=failed)


def record(role: str, row: Mapping[str, Any]) -> None:
    """Track a row of `metrics.jsonl`: its numbers under ROLE/NAME, those in mappings under A/B.

    Args:
        role: names the network that is trained.
        row: has `epoch`, counted from 1, which becomes the step.
    """
    _give(role, [row], again=False)


def recall(role: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Track the rows that a training which is continued has behind it, where they are not yet.

    The process that made them may have ended before it tracked the last, or had other trackers.
    """
    _give(role, rows, again=True)


def _give(role: str, rows: Sequence[Mapping[str, Any]], *, again: bool) -> None:
    trackers = _open.get() or {}
    for name, tracker in list(trackers.items()):
        with _survived(name) as failures:
            logged_epochs = tracker.logged_epochs
            last = logged_epochs.last(role) if again and logged_epochs is not None else 0
            if logged_epochs is not None and again and not rows:
                logged_epochs.note(role, 0)  # it begins anew
            for row in rows:
                epoch = int(row["epoch"])
                if epoch > last:
                    tracker.log(role, epoch, _plain(row))
                    if logged_epochs is not None:
                        logged_epochs.note(role, epoch)
        if failures:
            del trackers[name]


@contextmanager
def _survived(name: str) -> Iterator[list[str]]:
    """Log a tracker's failure (its network, its disk) inside the block, which stops nothing."""
    failures: list[str] = []
    try:
        yield failures
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        failure = f"tracker {name} failed and gets no more rows: {reason}; metrics.jsonl has all"
        failures.append(failure)
        log(failure)


def _plain(row: Mapping[str, Any]) -> dict[str, float]:
    return dict(_numbers({k: v for k, v in row.items() if k != "epoch"}))


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)

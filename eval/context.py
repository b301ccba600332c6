"""What a transfer task is given, and the comparison of initialisations that every task shares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from compress.artifacts import read_json, write_json
from compress.console import log
from compress.deployment import Encoder, load_encoder
from compress.errors import UserError
from compress.optimisation import Settings
from compress.ranks import by_first, is_first
from compress.training import Batches, train

Data = TypeVar("Data")

DISTILLED = "distilled"
ALONE = "alone"
SCRATCH = "scratch"


@dataclass(frozen=True)
class Context:
    """One transfer entry: where it writes, which students exist, how to train.

    `students` maps the label of every trained student to its folder; `main` is the label of the
    method that is shipped. `data` is the entry's `{name, **arguments}`.
    """

    folder: Path
    students: Mapping[str, Path]
    main: str
    inits: tuple[str, ...]
    data: Mapping[str, Any]
    settings: Settings
    device: torch.device
    seed: int


@dataclass(frozen=True)
class Start:
    """One initialisation: its name, the student it belongs to and the folder of its training."""

    init: str
    student: str
    encoder: Encoder
    folder: Path


def opened(context: Context, make: Callable[[Path], Data]) -> Data:
    """What `make` reads, in every process; it gets the folder for generated files.

    The first process does so before the others, as it may have to write the files.
    """
    found: list[Data] = []
    by_first(lambda: found.append(make(context.folder / "data")))
    return found[0] if is_first() else make(context.folder / "data")


def compare_inits(
    context: Context, evaluate: Callable[[Start], dict[str, float]]
) -> list[dict[str, Any]]:
    """Train and evaluate each initialisation in its own folder; one row of metrics per init.

    A finished init is read from its `outcome.json` again, so that a killed stage goes on with
    the next one. All inits get the same seed, hence the same order of data and the same head.
    Of several processes all train and evaluate; the first decides and keeps the metrics.
    """
    students = [_student_of(context, init) for init in context.inits]
    rows = []
    for init, student in zip(context.inits, students, strict=True):
        finished = context.folder / init / "outcome.json"
        if not by_first(partial(_is_done, finished)):
            encoder = _encoder(context.students[student], init, context.seed)
            metrics = evaluate(Start(init, student, encoder, finished.parent))
            row = {
                "init": init,
                "student": student,
                "metrics": metrics,
                "matched_percent": float(encoder.matched_percent),
            }
            write_json(finished, row)
        rows.append(by_first(partial(read_json, finished)))
        log(f"  {init}: " + ", ".join(f"{k} {v:.2f}" for k, v in rows[-1]["metrics"].items()))
    return rows


def _is_done(outcome: Path) -> bool:
    """Whether an init's result is there; its folder is afterwards."""
    outcome.parent.mkdir(parents=True, exist_ok=True)
    return outcome.is_file()


def fine_tune(
    context: Context, start: Start, module: nn.Module, batches: Batches, task: str
) -> None:
    """Train `module` in place from one initialisation, in that initialisation's folder."""
    train(
        module,
        batches,
        context.settings,
        directory=start.folder,
        role=f"{task}, {start.init}",
        seed=context.seed,
        device=context.device,
    )


def _student_of(context: Context, init: str) -> str:
    """The label whose folder an init reads; scratch takes only the architecture from there."""
    label = {DISTILLED: context.main, SCRATCH: context.main, ALONE: "none"}.get(init, init)
    if label not in context.students:
        raise UserError(
            f"transfer init '{init}' needs the trained student '{label}'; this run has "
            f"{', '.join(sorted(context.students)) or 'none'} (see distill.compare)."
        )
    return label


def _encoder(folder: Path, init: str, seed: int) -> Encoder:
    if init == SCRATCH:
        return load_encoder(folder, weights=False, seed=seed)
    encoder = load_encoder(folder, weights=True, seed=seed)
    if encoder.matched_percent < 100:
        raise UserError(
            f"{folder}: only {encoder.matched_percent:.1f} % of the encoder's weights were found "
            "in the student's file; it was written for another architecture."
        )
    return encoder


def result(
    context: Context,
    rows: Sequence[Mapping[str, Any]],
    *,
    protocol: str,
    headline: str,
    train_images: int,
    test_images: int,
    pictures: Sequence[str] = (),
    legend: str = "",
) -> dict[str, Any]:
    """The `values` of a transfer stage without its task name; `legend` explains the pictures."""
    return {
        "protocol": protocol,
        "headline": headline,
        "rows": list(rows),
        "data": {
            "name": context.data["name"],
            "train_images": train_images,
            "test_images": test_images,
        },
        "pictures": list(pictures),
        "legend": legend,
    }

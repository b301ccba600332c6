"""The transfer entry that a task gets, and the comparison of initialisations in every task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from compress.console.messages import log
from compress.data.batch import BatchSource
from compress.distributed.collectives import is_main_process, on_main_process
from compress.engine.loop import train
from compress.engine.optimization import TrainSettings
from compress.errors import UserError, nearest
from compress.model_files.artifacts import Encoder
from compress.model_files.origins import Origin, open_origin
from compress.run.directory import RunDirectory
from compress.run.fields import training_fields
from compress.storage.files import read_mapping, write_json
from compress.storage.fingerprints import fingerprint_of
from compress.storage.integrity import find_damaged, put_aside, record, require_seal, seal
from eval.data.batches import in_iterations
from eval.transfer.paired import Comparison
from eval.transfer.statistics import compare_with_reference

Data = TypeVar("Data")

DISTILLED = "distilled"
ALONE = "alone"
SCRATCH = "scratch"

OUTCOME = "outcome.json"
# What a training needs to go on checks itself, see `compress.engine.checkpoint`.
_STATE = ("checkpoint*", "best-*", "fields.json", "verified.json*", "*.partial", OUTCOME)

# By whether there are several seeds, and whether the test images could be paired.
_WHAT_VARIES = {
    (True, True): "intervals show the chance of the transfer's seeds and of the choice of test "
    "images, not that of the one distillation",
    (False, True): "intervals show the chance of the choice of test images, not that of training",
    (True, False): "intervals show the chance of the transfer's seeds alone, not that of the one "
    "distillation or of the choice of test images",
}


@dataclass(frozen=True)
class TransferContext:
    """One transfer entry: where it writes, which students exist, how to train.

    It writes into the folder of `stage` in the directory `run`; `fields` is what every training
    there depends on besides its init, its origin and its seed; with `fresh`, this process takes
    nothing back that was put aside. `students` maps the label of every trained student (and
    teacher) to its folder, or to whatever `compress.model_files.origins.open_origin` reads; `main`
    is the label of the method that is shipped. `data` is the entry's `{name, **arguments}`. Each
    init is trained once per seed. With `iterations` the training has so many steps instead of the
    settings' epochs.
    """

    run: RunDirectory
    stage: str
    students: Mapping[str, Path | str]
    main: str
    inits: tuple[str, ...]
    data: Mapping[str, Any]
    settings: TrainSettings
    device: torch.device
    seeds: tuple[int, ...] = (0,)
    iterations: int | None = None
    allow_partial: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the entry's files; the trainings' are in `INIT/seed-N`."""
        return self.run.stage_folder(self.stage)

    @property
    def seed(self) -> int:
        """The first seed: what subsets of data are drawn by, the same ones for every init."""
        return self.seeds[0]

    def origin(self, label: str) -> Origin:
        """The network behind a label of `students`."""
        return open_origin(str(self.students[label]), allow_partial=self.allow_partial)


@dataclass(frozen=True)
class Start:
    """One training: its initialisation, the student that belongs to, its seed and its folder.

    Of one seed all inits have the same order of data and the same new layers. What a task writes
    lies below `folder`.
    """

    init: str
    student: str
    encoder: Encoder
    folder: Path
    origin: Origin
    seed: int
    fingerprint: str = ""  # of what the training depends on


def open_in_order(context: TransferContext, make: Callable[[Path], Data]) -> Data:
    """Read data in every process; `make` gets the folder for generated files.

    The first process reads before the others, as it may have to write the files.
    """
    opened: list[Data] = []
    on_main_process(lambda: opened.append(make(context.folder / "data")))
    return opened[0] if is_main_process() else make(context.folder / "data")


def open_entry(context: TransferContext, datasets: Mapping[str, Callable[..., Data]]) -> Data:
    """The entry's data set, made by the function that `datasets` has under its name."""
    arguments = dict(context.data)
    make = datasets[arguments.pop("name")]
    return open_in_order(context, lambda folder: make(folder, **arguments))


def compare_inits(
    context: TransferContext,
    evaluate: Callable[[Start], dict[str, float]],
    compare: Comparison | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate each initialisation with each seed; one row per init.

    A row has `metrics` (means over the seeds), `spread` (standard deviations; None of one seed),
    `per_seed`, and `against`: the paired differences to the student alone, or else to scratch, over
    the seeds, and `over_images` by `compare`, where the trainings left their predictions.
    A training stands for itself: its `outcome.json` is read for as long as all that it depends on
    is the same, whatever else is asked for beside it, and a killed stage goes on with the next one.
    Of several processes all train and evaluate; the first decides and keeps the metrics.
    """
    labels = {init: student_of(context, init) for init in context.inits}
    digests = on_main_process(
        lambda: {i: digest_of_init(i, context.origin(label)) for i, label in labels.items()}
    )
    outcomes = {
        init: [_outcome(context, init, digests[init], seed, evaluate) for seed in context.seeds]
        for init in labels
    }
    reference = next((init for init in (ALONE, "none", SCRATCH) if init in outcomes), None)
    rows = [
        {"init": init, "student": label, **compare_with_reference(init, outcomes, reference)}
        for init, label in labels.items()
    ]
    folders = {
        init: [context.run.stage_folder(_stage_of(context, init, seed)) for seed in context.seeds]
        for init in labels
    }
    for row in rows:
        if compare is not None and row["against"] is not None and reference is not None:
            pair = folders[row["init"]], folders[reference]
            row["against"]["over_images"] = on_main_process(partial(compare, *pair))
    return rows


def digest_of_init(init: str, origin: Origin) -> str:
    """A digest of all that an init takes from its origin, which is tried before any training.

    Raises:
        UserError: see `Origin.encoder`.
    """
    with_weights = init != SCRATCH
    if with_weights:
        origin.encoder()
    return origin.identity(weights=with_weights)


def _outcome(
    context: TransferContext,
    init: str,
    digest: str,
    seed: int,
    evaluate: Callable[[Start], dict[str, float]],
) -> dict[str, Any]:
    """The outcome of one training: its seed, its metrics, how much of the encoder was loaded."""
    stage = _stage_of(context, init, seed)
    fields = training_fields(context.fields, init=init, origin=digest, seed=seed)
    folder = on_main_process(partial(_training_folder, context, stage, fields))
    outcome: dict[str, Any] | None = on_main_process(partial(_read_outcome, folder, stage))
    if outcome is None:
        student = student_of(context, init)
        origin = context.origin(student)
        encoder = origin.encoder(weights=init != SCRATCH, seed=seed)
        start = Start(init, student, encoder, folder, origin, seed, fingerprint_of(fields))
        metrics = evaluate(start)
        matched = float(encoder.matched_percent)
        done = {"seed": seed, "metrics": metrics, "matched_percent": matched}
        outcome = on_main_process(partial(_write_outcome, folder, done))
    metrics_text = ", ".join(f"{k} {v:.2f}" for k, v in outcome["metrics"].items())
    log(f"  {init}{f', seed {seed}' if len(context.seeds) > 1 else ''}: {metrics_text}")
    return outcome


def _stage_of(context: TransferContext, init: str, seed: int) -> str:
    """The name of one training, which is its folder in the run."""
    return f"{context.stage}/{init}/seed-{seed}"


def _training_folder(context: TransferContext, stage: str, fields: Mapping[str, Any]) -> Path:
    """The folder of one training, with what was done there for the same fields."""
    context.run.make_room(stage, fields, restore=not context.fresh)
    return context.run.begin(stage, fields)


def _read_outcome(folder: Path, stage: str) -> dict[str, Any] | None:
    """The outcome of a training that was finished; one of which a part is damaged is put aside."""
    path = folder / OUTCOME
    if not path.is_file():
        return None
    try:
        outcome = read_mapping(path)
        require_seal(outcome, path, ("seed", "metrics", "matched_percent"))
        problems = find_damaged(folder, outcome.get("files", {}))
        if not problems:
            return outcome
        reason = ", ".join(f"{folder / name} {problem}" for name, problem in problems.items())
    except UserError as error:
        problems, reason = {}, str(error)
    place = put_aside(folder, [*problems, OUTCOME])
    log(f"{stage}: {reason}; it is now in {place}, and made again from what is whole")
    return None


def _write_outcome(folder: Path, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Write a training's outcome, with a record of what it left; returns it as it is read again."""
    records = {name: record(folder / name) for name in files_of_training(folder)}
    write_json(folder / OUTCOME, seal({**outcome, "files": records}))
    return read_mapping(folder / OUTCOME)


def files_of_training(folder: Path) -> list[str]:
    """Contents of a training's folder besides its outcome and its state.

    Its files, and its folders, each of which counts as a whole.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    left = [path for path in paths if not any(path.match(pattern) for pattern in _STATE)]
    return [path.relative_to(folder).as_posix() for path in left]


def fine_tune(
    context: TransferContext, start: Start, module: nn.Module, batches: BatchSource, task: str
) -> None:
    """Train `module` in place from one initialisation, in that initialisation's folder."""
    settings = context.settings
    if context.iterations is not None:
        batches, epochs = in_iterations(batches, context.iterations)
        settings = replace(settings, epochs=epochs)
    train(
        module,
        batches,
        settings,
        directory=start.folder,
        role=f"{task}, {start.init}",
        seed=start.seed,
        device=context.device,
        fingerprint=start.fingerprint,
    )


def student_of(context: TransferContext, init: str) -> str:
    """The label whose folder an init reads; scratch takes only the architecture from there."""
    return label_of(init, context.students, context.main)


def label_of(init: str, students: Mapping[str, Path | str], main: str) -> str:
    """`student_of`, of the students by label and the label of the main one.

    Raises:
        UserError: there is no such student.
    """
    label = {DISTILLED: main, SCRATCH: main, ALONE: "none"}.get(init, init)
    if label not in students:
        raise UserError(
            f"transfer init '{init}' needs the trained student '{label}'; this run has "
            f"{', '.join(sorted(students)) or 'none'} (see distill.compare)"
            f"{nearest(label, students)}."
        )
    return label


def result(
    context: TransferContext,
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
    compared = [row["against"] for row in rows if row.get("against")]
    is_paired = bool(compared) and all(one.get("over_images") for one in compared)
    if (note := _WHAT_VARIES.get((len(context.seeds) > 1, is_paired))) is not None:
        protocol = f"{protocol.rstrip('.')}; {note}"
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

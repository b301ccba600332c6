"""The teachers: trained here, or read from a file; each evaluated before any student is trained."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress import models
from compress.comparison.predictions import PREDICTIONS
from compress.console.messages import log
from compress.data import Batch, Conversion, Dataset, Preprocessing, conversion
from compress.data.dense.images import MaskedImages
from compress.data.dense.samples import write_photos
from compress.distributed.collectives import is_main_process
from compress.engine.loop import History, train
from compress.errors import UserError
from compress.methods.contract import StoredOutputs, logits_of
from compress.model_files import artifacts
from compress.model_files.encoders import NO_HEAD, load_encoder_weights
from compress.model_files.published import own_preprocessing
from compress.model_files.weights import load_initial
from compress.models.forward import check_forward, lay_channels_last
from compress.recipe.schema import PreprocessingPart, TeacherPart, Train
from compress.seeding import seeded
from compress.self_supervised import SELF_SUPERVISED
from compress.stages import (
    REFERENCES,
    compile_forward,
    dataset_of,
    evaluate,
    judge,
    logits_only,
    save_predictions,
    save_references,
    selection_of,
    settings_from,
    summary,
    task_of,
    training_batches,
)
from compress.stages.job import Job, Outcome
from compress.stages.logits_only import LogitsFile
from compress.storage.fingerprints import fingerprint_of
from compress.taps import Tapped, TappedForward, TapSpecs
from compress.taps.discovery import discover
from compress.tasks import Task
from compress.teacher.settings import check_arithmetic, check_int8
from compress.teacher.stored import OutputFile

RESULT_VERSION = 3
IN_EVERY_PROCESS = True


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """The files of every teacher, with the digests that the result's `values` hold."""
    rows = values.get("teachers", ())
    digests = {str(number): row.get("sha256") for number, row in enumerate(rows)}
    digest_by_file: dict[str, str | None] = {}
    for number in sorted({*digests, *(p.parent.name for p in folder.glob("[0-9]*/teacher.*"))}):
        digest_by_file[f"{number}/teacher.safetensors"] = digests.get(number)
        digest_by_file[f"{number}/teacher.json"] = None
        for name in (PREDICTIONS, REFERENCES, "metrics.jsonl"):
            if (folder / number / name).is_file():
                digest_by_file[f"{number}/{name}"] = None
    return digest_by_file


def run(job: Job) -> Outcome:
    """Obtain every teacher of the recipe."""
    check_arithmetic(job.recipe.engine.teacher, job.device)
    data = dataset_of(job.recipe, job.device)
    parts = dict(enumerate(job.recipe.teacher))
    # Before any is trained, so that a file that cannot serve ends the run.
    files = {i: _open_file(job, data, i, p) for i, p in parts.items() if p.logits_file is not None}
    rows = [
        _teacher_of_file(job, data, i, part, files[i])
        if i in files
        else _teacher(job, data, i, part)
        for i, part in parts.items()
    ]
    return Outcome({"teachers": rows}, {})


def write_untrained(job: Job) -> None:
    """Write every teacher as it is before its training, without weights of any file.

    For steps that are timed and thrown away.
    """
    data = dataset_of(job.recipe, job.device)
    for index, part in enumerate(job.recipe.teacher):
        folder, label = _place(job, index)
        seen = replace(data, preprocessing=requested_preprocessing(part, data.preprocessing))
        row = {"label": label}
        if part.logits_file is not None:
            file = _open_file(job, data, index, part)
            network: nn.Module = (
                StoredOutputs(file.of_training(len(data.train)))
                if isinstance(file, OutputFile)
                else file
            )
            _save_of_file(job, folder, seen, row, part, network)
            continue
        if part.model is not None:
            part = part.model_copy(update={"weights": None, "checkpoint": None})
        network, architecture, method = _build(job, seen, index, part)
        specs = _prepare(job, seen, part, network, architecture["name"])
        _save(job, folder, seen, row, network, architecture, specs, {"method": method})


def load_teachers(run_folder: Path) -> list[artifacts.Student]:
    """The teachers of a run, in eval mode, on the CPU."""
    return [_load(folder) for folder in teacher_folders(run_folder)]


def _load(folder: Path) -> artifacts.Student:
    description = artifacts.load_description(folder, "teacher")
    if logits_only.KEY in description:
        return logits_only.load(folder, description)
    return artifacts.load_student(folder, "teacher")


def teacher_folders(run_folder: Path) -> list[Path]:
    """The folders of the teachers of a run, in their order."""
    folders = (p for p in (run_folder / "teacher").iterdir() if p.name.isdigit())
    return sorted(folders, key=lambda p: int(p.name))


def preprocessing_of(teacher: artifacts.Student) -> Preprocessing:
    """Preprocessing of the images that a teacher of a run reads."""
    return Preprocessing.from_dict(teacher.description["preprocessing"])


def requested_preprocessing(part: TeacherPart, usual: Preprocessing) -> Preprocessing:
    """Preprocessing of the images that a teacher of a recipe reads; `usual` is the data set's.

    Raises:
        UserError: it is to be the teacher's own, and nobody says what that is.
    """
    wish = part.preprocessing
    if wish is None:
        return usual
    if isinstance(wish, PreprocessingPart):
        size = wish.image_size or usual.image_size
        larger = size if size != usual.image_size else 0
        resize = round(usual.resize * size / usual.image_size) if usual.resize else larger
        plain = usual.as_dict() | wish.model_dump(exclude_none=True)
        return Preprocessing.from_dict(plain | {"resize": resize})
    name = part.model.name if part.model else None
    own = own_preprocessing(name, part.checkpoint, part.weights)
    if own is None:
        raise UserError(
            "teacher.preprocessing: `own` is what the description beside a checkpoint, torchvision "
            f"or timm says; nobody does of {name or part.checkpoint}; give image_size, mean and std"
        )
    return own


def _open_file(job: Job, data: Dataset, index: int, part: TeacherPart) -> LogitsFile:
    """Read the file of a teacher that gives logits only."""
    path = "teacher" if len(job.recipe.teacher) == 1 else f"teacher.{index}"
    seen = requested_preprocessing(part, data.preprocessing)
    file = logits_only.open_file(part, path, seen, len(data.class_names))
    if isinstance(file, OutputFile):
        with logits_only.at_key(part, path):
            logits_only.check_rows(file, data)
    return file


def _teacher_of_file(
    job: Job, data: Dataset, index: int, part: TeacherPart, file: LogitsFile
) -> dict[str, Any]:
    """Evaluate and save a teacher that gives logits only; returns its row of the result."""
    folder, label = _place(job, index)
    task, name = task_of(job.recipe), logits_only.name_of(part)
    seen = replace(data, preprocessing=requested_preprocessing(part, data.preprocessing))
    row: dict[str, Any] = {"label": label, "model": name, "source": part.logits_file}
    network: nn.Module
    if isinstance(file, OutputFile):
        network = StoredOutputs(file.of_training(len(data.train)))
        results = logits_only.evaluate_stored(file, network, data, job, folder, label)
    else:
        network = file
        convert = _conversion(data, seen, row)
        results = evaluate(_Reading(network, convert), data, job)
        save_predictions(_Reading(network, convert), data, job, folder)
    row |= summary([{"epoch": 0, **results}], task) | {"epochs": 0}
    row |= {key: value for key, value in results.items() if key.startswith("train_")}
    row["test_images"] = len(data.test)
    if task.metric in row:
        log(f"  {label} {name}: {task.describe(row)} on {len(data.test)} images")
        _refuse_weak(row, None, task, data, part)
    else:
        log(f"  {label} {name}: no logits of test images, so its accuracy is not known")
    return row | _save_of_file(job, folder, seen, row, part, network)


def _save_of_file(
    job: Job,
    folder: Path,
    seen: Dataset,
    row: Mapping[str, Any],
    part: TeacherPart,
    network: nn.Module,
) -> dict[str, str]:
    """Write a teacher that is a file; returns its digest."""
    about = {logits_only.KEY: logits_only.describe_file(part, network)}
    architecture = {"name": about[logits_only.KEY]["kind"], "arguments": {}}
    specs = logits_only.specs_of(len(seen.class_names))
    return _save(job, folder, seen, row, network, architecture, specs, about)


def _place(job: Job, index: int) -> tuple[Path, str]:
    """The folder of a teacher, and what it is called."""
    folder = job.folder / str(index)
    folder.mkdir(exist_ok=True)
    return folder, "teacher" if len(job.recipe.teacher) == 1 else f"teacher {index + 1}"


def _conversion(data: Dataset, seen: Dataset, row: dict[str, Any]) -> Conversion | None:
    """What makes a teacher's images of the data set's; told and put into its row, if anything."""
    convert = conversion(data.preprocessing, seen.preprocessing)
    if convert is not None:
        log(f"  {row['label']} {row['model']}: images are {convert.as_words()}")
        row["preprocessing"] = seen.preprocessing.as_dict()
    return convert


def _teacher(job: Job, data: Dataset, index: int, part: TeacherPart) -> dict[str, Any]:
    """Obtain, evaluate and save one teacher; returns its row of the result."""
    folder, label = _place(job, index)
    # The data set as this teacher reads it; the batches are the data set's own.
    seen = replace(data, preprocessing=requested_preprocessing(part, data.preprocessing))
    network, architecture, method = _build(job, seen, index, part)
    name = architecture["name"]
    specs = _prepare(job, seen, part, network, name)
    task = task_of(job.recipe)
    row: dict[str, Any] = {"label": label, "model": name, "source": _source(part)}
    reading = _Reading(network, _conversion(data, seen, row))
    if part.train is not None:
        seed = _seed(job, index, part)
        if part.ssl is not None:
            history = _pretrain(job, data, part, reading, specs, folder, label, seed)
        else:
            history = _train(job, data, seen, part.train, reading, specs, folder, label, seed)
        row |= summary(history, task)
    else:
        results = evaluate(reading.to(job.device), data, job)
        row |= summary([{"epoch": 0, **results}], task) | {"epochs": 0}
    save_predictions(reading, data, job, folder)
    if isinstance(data.test, MaskedImages) and is_main_process():
        write_photos(folder, data.test)
    references = save_references(reading, data, job, folder)
    judged = judge(reading, data, job)
    row |= judged
    row["test_images"] = len(data.test)
    log(f"  {label} {name}: {task.describe(row)} on {len(data.test)} images")
    _refuse_weak(row, references.get(""), task, data, part)
    about = {"method": method}
    return row | _save(job, folder, seen, row, network, architecture, specs, about, judged)


def _save(
    job: Job,
    folder: Path,
    seen: Dataset,
    row: Mapping[str, Any],
    network: nn.Module,
    architecture: dict[str, Any],
    specs: TapSpecs,
    about: Mapping[str, Any],
    judged: Iterable[str] = (),
) -> dict[str, str]:
    """Write a teacher's file, and its description with `about`; returns the digest of the file."""
    metrics = (task_of(job.recipe).metric, *judged)
    description = artifacts.describe(
        architecture,
        specs,
        seen.class_names,
        seen.preprocessing,
        metrics={key: row[key] for key in metrics if key in row},
        fingerprint=job.recipe_fingerprint,
    )
    description |= {"method": None, "encoder_prefix": "", "label": row["label"], **about}
    return {"sha256": artifacts.save(folder, "teacher", network, description)}


def _prepare(job: Job, data: Dataset, part: TeacherPart, network: nn.Module, name: str) -> TapSpecs:
    """Find the taps, refuse what cannot serve, and lay the network out in memory."""
    shape, learns = data.preprocessing.input_shape, part.train is not None
    task = task_of(job.recipe)
    embeds, dense = not task.has_classes, task.is_dense
    taps = part.taps.model_dump()
    specs = discover(network, shape, name, **taps, embeds=embeds, dense=dense)
    check_forward(network, shape, learns=learns, dense=task.is_dense)
    if job.recipe.engine.teacher == "int8":
        check_int8(network, specs, ())
    lay_channels_last(network, shape, learns=learns)
    return specs


def _train(
    job: Job,
    data: Dataset,
    seen: Dataset,
    settings: Train,
    reading: "_Reading",
    specs: TapSpecs,
    folder: Path,
    label: str,
    seed: int,
) -> History:
    """Train a teacher on hard labels; `seen` are the data as it reads them."""
    task, network = task_of(job.recipe), reading.network
    with seeded(seed, label, "auxiliary head"):
        head = task.auxiliary(specs)
    wanted = ("logits",) if head is None else ("logits", "auxiliary")
    batches = training_batches(job, data, settings, augment=[data.augment], trial=0)
    forward = compile_forward(
        job,
        seen,
        network,
        specs,
        wanted,
        settings,
        name=label,
        rows=lambda: next(iter(batches.epoch(0))).usual_part(settings.accumulate),
    )
    return train(
        _Supervised(reading, forward or Tapped(network, specs, wanted), task, head),
        batches,
        settings_from(settings),
        directory=folder,
        role=label,
        seed=seed,
        device=job.device,
        evaluate=partial(evaluate, reading, data, job),
        keep_best=selection_of(task, data),
        fingerprint=fingerprint_of(job.fields),
    )


def _pretrain(
    job: Job,
    data: Dataset,
    part: TeacherPart,
    reading: "_Reading",
    specs: TapSpecs,
    folder: Path,
    label: str,
    seed: int,
) -> History:
    """Train a teacher on images alone; its loss is all that is told of it on the way."""
    settings, ssl, width = part.train, part.ssl, specs.pooled_width
    assert settings is not None and ssl is not None and width is not None
    method = SELF_SUPERVISED[ssl.name]
    with seeded(seed, label, ssl.name):
        module = method(reading, width, seed=seed, **ssl.arguments)
    log(f"  {label}: {module.queue.note()}")
    return train(
        module,
        training_batches(job, data, settings, augment=method.augment, trial=0),
        settings_from(settings),
        directory=folder,
        role=label,
        seed=seed,
        device=job.device,
        fingerprint=fingerprint_of(job.fields),
    )


class _Reading(nn.Module):
    """A network that is shown the data set's images, and reads them converted where it must."""

    def __init__(self, network: nn.Module, convert: Conversion | None) -> None:
        super().__init__()
        self.network = network
        self.convert = convert

    def images(self, images: Tensor) -> Tensor:
        return images if self.convert is None else self.convert(images)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.images(images))
        return logits


class _Supervised(nn.Module):
    """A network with its hard loss, as the loop wants it."""

    def __init__(
        self, reading: _Reading, forward: TappedForward, task: Task, head: nn.Module | None
    ) -> None:
        super().__init__()
        self.network = reading.network
        self.task = task
        self.auxiliary = head
        self._images = reading.images
        self._taps = forward

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        taps = self._taps(self._images(batch.images[0]))
        terms = {"ce": self.task.loss_of(batch)(logits_of(taps), batch.labels)}
        if self.auxiliary is not None:
            terms["auxiliary"] = self.task.auxiliary_loss(self.auxiliary, taps, batch)
        return terms


def _seed(job: Job, index: int, part: TeacherPart) -> int:
    return job.recipe.seed + index if part.seed is None else part.seed


def _build(
    job: Job, data: Dataset, index: int, part: TeacherPart
) -> tuple[nn.Module, dict[str, Any], dict[str, Any] | None]:
    """Network, architecture, and the method of a teacher that was itself distilled here."""
    classes, embeds = len(data.class_names), not task_of(job.recipe).has_classes
    weights = part.checkpoint or part.weights
    known = own_description(part)
    if known is not None and part.checkpoint is not None:
        path = Path(part.checkpoint)
        note = describe_other_normalisation(part.checkpoint, known, data.preprocessing)
        if note is not None:
            log(f"  {note}")
        if known["num_classes"] == classes:
            loaded = artifacts.load_student(path.parent, path.stem)
            return loaded.network, known["architecture"], known["method"]
        if known["method"] is not None or not (part.train or embeds):
            raise _other_classes(known["num_classes"], data)
        architecture: dict[str, Any] = known["architecture"]
        network = artifacts.build_plain(
            known,
            num_classes=classes,
            seed=_seed(job, index, part),
            role="teacher",
            weights=path,
        )
    elif part.model is not None:
        architecture = {"name": part.model.name, "arguments": part.model.arguments}
        head = {} if part.head in (None, NO_HEAD) else {"head": part.head}
        architecture |= head
        network = models.build(
            part.model.name,
            num_classes=classes,
            seed=_seed(job, index, part),
            role="teacher",
            **head,
            **part.model.arguments,
        )
    else:
        raise UserError(
            f"teacher.checkpoint: '{weights}' has no .json beside it that names its architecture; "
            "give `model` too"
        )
    if weights is not None and embeds:
        load_encoder_weights(network, architecture["name"], weights, part.head)
    elif weights is not None:
        shape = data.preprocessing.input_shape
        dense = task_of(job.recipe).is_dense
        replaced = load_initial(network, architecture["name"], weights, shape, dense=dense)
        if replaced is not None and part.train is None:
            raise _other_classes(replaced, data)
    return network, architecture, None


def describe_other_normalisation(
    weights: str, description: Mapping[str, Any], used: Preprocessing
) -> str | None:
    """A note on the images that a teacher learned from, where those of the run are others."""
    own, now = description["preprocessing"], used.as_dict()
    differing = [key for key in ("mean", "std", "image_size") if own.get(key) != now[key]]
    if not differing:
        return None
    learned, sees = (
        ", ".join(f"{key} {values.get(key)}" for key in differing) for values in (own, now)
    )
    return (
        f"{weights} learned from images of {learned}; here it is shown the data set's, of {sees}, "
        "and may say less of them"
    )


def own_description(part: TeacherPart) -> dict[str, Any] | None:
    """Read the description of a checkpoint that this project wrote; None for others."""
    path = Path(part.checkpoint) if part.checkpoint else None
    if path is None or not artifacts.is_described(path) or part.model is not None:
        return None
    return artifacts.load_description(path.parent, path.stem)


def _other_classes(classes: int, data: Dataset) -> UserError:
    return UserError(
        f"teacher: its file has {classes} classes, the data have {len(data.class_names)}; give "
        "`model` and `train` to fit a new classifier, or other data"
    )


def _source(part: TeacherPart) -> str:
    weights = part.checkpoint or part.weights
    how = f"trained without labels ({part.ssl.name})" if part.ssl is not None else "trained"
    return how if weights is None else f"{weights}{f', then {how}' if part.train else ''}"


def _refuse_weak(
    row: Mapping[str, Any], reference: Tensor | None, task: Task, data: Dataset, part: TeacherPart
) -> None:
    """Refuse a teacher that is no better than chance, unless the recipe allows it."""
    counts = {"num_classes": len(data.class_names), "images": len(data.test)}
    reason = task.weakness(row, reference, **counts)
    if reason is None:
        return
    if part.allow_chance_level:
        log(f"  {row['label']} {reason}; the recipe allows that (allow_chance_level)")
        return
    raise UserError(
        f"{row['label']} {reason}; nothing can be distilled from it. Train it longer, or check its "
        "weights, classes and preprocessing; `teacher: {allow_chance_level: true}` goes on with it"
    )

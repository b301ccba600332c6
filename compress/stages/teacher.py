"""The teachers: trained here, or read from a file; each judged before any student is trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress import models
from compress.console.messages import log
from compress.data import Dataset, ImageBatches, Preprocessing
from compress.engine.compiling import compiled_taps
from compress.engine.loop import train
from compress.errors import UserError
from compress.methods.contract import logits_of
from compress.model_files import artifacts
from compress.model_files.weights import load_state, published_state, read_state
from compress.models.forward import check_forward, lay_channels_last
from compress.recipe.schema import Teacher
from compress.stages import compiles, dataset_of, judge, order_seed, settings_from, summary, task_of
from compress.stages.fast_teachers import check_arithmetic, check_int8
from compress.stages.job import Job, Outcome
from compress.storage.fingerprints import fingerprint_of
from compress.taps import Tapped, Taps, TapSpecs
from compress.taps.discovery import discover
from compress.tasks import Classification

RESULT_VERSION = 3


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """The files of every teacher, with the digests that the result's `values` hold."""
    rows = values.get("teachers", ())
    digests = {str(number): row.get("sha256") for number, row in enumerate(rows)}
    found: dict[str, str | None] = {}
    for number in sorted({*digests, *(p.parent.name for p in folder.glob("[0-9]*/teacher.*"))}):
        found[f"{number}/teacher.safetensors"] = digests.get(number)
        found[f"{number}/teacher.json"] = None
        if (folder / number / "metrics.jsonl").is_file():
            found[f"{number}/metrics.jsonl"] = None
    return found


def run(job: Job) -> Outcome:
    """Obtain every teacher of the recipe."""
    check_arithmetic(job.recipe.engine, job.device)
    data = dataset_of(job.recipe, job.device)
    rows = [_teacher(job, data, i, part) for i, part in enumerate(job.recipe.teacher)]
    return Outcome({"teachers": rows}, {})


def load_teachers(run_folder: Path) -> list[artifacts.Student]:
    """The teachers of a run, in eval mode, on the CPU."""
    folders = sorted(
        (p for p in (run_folder / "teacher").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    return [artifacts.load_student(folder, "teacher") for folder in folders]


def _teacher(job: Job, data: Dataset, index: int, part: Teacher) -> dict[str, Any]:
    folder = job.folder / str(index)
    folder.mkdir(exist_ok=True)
    label = "teacher" if len(job.recipe.teacher) == 1 else f"teacher {index + 1}"
    network, architecture, method = _build(job, data, index, part)
    shape, name = data.preprocessing.input_shape, architecture["name"]
    specs = discover(network, shape, name, **part.taps.model_dump())
    learns = part.train is not None
    check_forward(network, shape, learns=learns)
    if job.recipe.engine.teacher == "int8":
        check_int8(network, specs, ())
    lay_channels_last(network, shape, learns=learns)
    task = task_of(job.recipe)
    row: dict[str, Any] = {"label": label, "model": architecture["name"], "source": _source(part)}
    if part.train is not None:
        seed = job.recipe.seed + index
        learner = _Learner(network, specs, task)
        batches = ImageBatches(
            data.train,
            data.preprocessing,
            batch_size=part.train.batch_size,
            augment=[data.augment],
            seed=order_seed(job.recipe, 0),
            device=job.device,
            workers=job.workers,
            views=job.recipe.data.views,
            views_seed=order_seed(job.recipe, 0),
        )
        if compiles(job, data, network, part.train, passes=3):
            network.to(job.device)
            wish = job.recipe.engine.compile
            rows = None  # as many as the first batch has, unless that is shown in parts
            if part.train.accumulate > 1:
                rows = next(iter(batches.epoch(0))).usual_part(part.train.accumulate)
            look = compiled_taps(network, specs, ("logits",), label, wish=wish, rows=rows)
            learner.look = look or learner.look
        history = train(
            learner,
            batches,
            settings_from(part.train),
            directory=folder,
            role=label,
            seed=seed,
            device=job.device,
            evaluate=lambda: judge(network, data, job),
            keep_best=f"validation_{task.metric}" if data.validation else None,
            fingerprint=fingerprint_of(job.fields),
        )
        row |= summary(history, task.metric)
    else:
        network.to(job.device)
        found = judge(network, data, job)
        row |= summary([{"epoch": 0, **found}], task.metric) | {"epochs": 0}
    row["test_images"] = len(data.test)
    log(f"  {label} {architecture['name']}: {row[task.metric]:.2f} % on {len(data.test)} images")
    _refuse_chance(row[task.metric], task, data, label)
    description = artifacts.describe(
        architecture,
        specs,
        data.class_names,
        data.preprocessing,
        metrics={task.metric: row[task.metric]},
        fingerprint=job.recipe_fingerprint,
    )
    description |= {"method": method, "encoder_prefix": "", "label": label}
    return row | {"sha256": artifacts.save(folder, "teacher", network, description)}


class _Learner(nn.Module):
    """A network with its hard loss, as the loop wants it."""

    def __init__(self, network: nn.Module, specs: TapSpecs, task: Classification) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.look: Callable[[Tensor], Taps] = Tapped(network, specs, ("logits",))

    def forward(self, batch: Any) -> dict[str, Any]:
        return {"ce": self.task.loss(logits_of(self.look(batch.images[0])), batch.labels)}


def _build(
    job: Job, data: Dataset, index: int, part: Teacher
) -> tuple[nn.Module, dict[str, Any], dict[str, Any] | None]:
    """Network, architecture, and the method of a teacher that was itself distilled here."""
    classes = len(data.class_names)
    given = part.checkpoint or part.weights
    known = own_description(part)
    if known is not None and part.checkpoint is not None:
        path = Path(part.checkpoint)
        remark = normalised_otherwise(part.checkpoint, known, data.preprocessing)
        if remark is not None:
            log(f"  {remark}")
        if known["num_classes"] == classes:
            loaded = artifacts.load_student(path.parent, path.stem)
            return loaded.network, known["architecture"], known["method"]
        if part.train is None or known["method"] is not None:
            raise _other_classes(known["num_classes"], data)
        architecture: dict[str, Any] = known["architecture"]
        network = artifacts.build_plain(
            known,
            num_classes=classes,
            seed=job.recipe.seed + index,
            role="teacher",
            weights=path,
        )
    elif part.model is not None:
        architecture = {"name": part.model.name, "arguments": part.model.arguments}
        network = models.build(
            part.model.name,
            num_classes=classes,
            seed=job.recipe.seed + index,
            role="teacher",
            **part.model.arguments,
        )
    else:
        raise UserError(
            f"teacher.checkpoint: '{given}' has no .json beside it that names its architecture; "
            "give `model` too"
        )
    if given is not None:
        replaced = load_initial(network, architecture["name"], given, data)
        if replaced is not None and part.train is None:
            raise _other_classes(replaced, data)
    return network, architecture, None


def normalised_otherwise(
    given: str, description: Mapping[str, Any], shown: Preprocessing
) -> str | None:
    """What a teacher's file says of the images it learned from, where it is `shown` others."""
    own, now = description["preprocessing"], shown.as_dict()
    differing = [key for key in ("mean", "std", "image_size") if own.get(key) != now[key]]
    if not differing:
        return None
    learned, sees = (
        ", ".join(f"{key} {values.get(key)}" for key in differing) for values in (own, now)
    )
    return (
        f"{given} learned from images of {learned}; here it is shown the data set's, of {sees}, "
        "and may say less of them"
    )


def own_description(part: Teacher) -> dict[str, Any] | None:
    """What a checkpoint written by this project says of itself."""
    path = Path(part.checkpoint) if part.checkpoint else None
    if path is None or not path.with_suffix(".json").is_file() or part.model is not None:
        return None
    return artifacts.load_description(path.parent, path.stem)


def _other_classes(classes: int, data: Dataset) -> UserError:
    return UserError(
        f"teacher: its file has {classes} classes, the data have {len(data.class_names)}; give "
        "`model` and `train` to fit a new classifier, or other data"
    )


def load_initial(network: nn.Module, model: str, given: str, data: Dataset) -> int | None:
    """Load published weights or a file into a network that was built for `data`.

    Returns:
        The number of classes in the file where the classifier was replaced, else None.
    """
    state = published_state(model, given)
    if state is None:
        state = read_state(Path(given))
    specs = discover(network, data.preprocessing.input_shape, model)
    loaded = load_state(network, state, specs.classifier, given)
    if loaded.classifier_replaced:
        log(
            f"  {model}: classifier of {loaded.classes_in_file} classes replaced by a new one "
            f"of {len(data.class_names)}"
        )
        return loaded.classes_in_file
    return None


def _source(part: Teacher) -> str:
    given = part.checkpoint or part.weights
    return "trained" if given is None else f"{given}{', then trained' if part.train else ''}"


def _refuse_chance(value: float, task: Classification, data: Dataset, label: str) -> None:
    chance = task.chance_percent(len(data.class_names), len(data.test))
    if value <= chance:
        raise UserError(
            f"{label} is at chance: {value:.2f} % on {len(data.test)} test images of "
            f"{len(data.class_names)} classes (guessing reaches up to {chance:.2f} %); nothing "
            "can be distilled from it. Train it longer, or check its weights, classes and "
            "preprocessing"
        )

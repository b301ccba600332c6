"""Teachers that are files: an ONNX model, or outputs that were computed elsewhere. Logits only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from compress.comparison.predictions import PREDICTIONS, write_predictions
from compress.console.messages import log
from compress.data import Dataset, Preprocessing
from compress.distributed.collectives import rank, world_size
from compress.errors import UserError
from compress.methods import find_method, known_method
from compress.methods.contract import StoredOutputs
from compress.model_files.artifacts import Student
from compress.recipe.schema import MethodPart, Recipe, TeacherPart
from compress.stages import EVALUATION_BATCH, judged_splits, task_of
from compress.stages.job import Job
from compress.storage.files import read_tensors
from compress.storage.fingerprints import sha256_file
from compress.storage.results import require_whole
from compress.taps import TapSpecs
from compress.tasks import Classification
from compress.teacher.onnx_file import OnnxTeacher, open_onnx_teacher
from compress.teacher.stored import OutputFile, read_outputs

Kind = Literal["onnx", "outputs"]
LogitsFile: TypeAlias = OnnxTeacher | OutputFile
KEY = "logits_only"  # of a description, under which stands what is known of the file
WORDS: Mapping[str, str] = {"onnx": "an ONNX file", "outputs": "stored outputs"}


def kind_of(part: TeacherPart) -> Kind | None:
    """The kind of a recipe's teacher that gives logits only; None of a network."""
    return "onnx" if part.onnx is not None else "outputs" if part.outputs is not None else None


def open_file(
    part: TeacherPart, path: str, preprocessing: Preprocessing, classes: int | None
) -> LogitsFile:
    """Read the file of a teacher of so many classes (None: any number).

    Args:
        path: of the recipe's teacher, for messages.

    Raises:
        UserError: it cannot serve.
    """
    with at_key(part, path):
        if part.onnx is not None:
            return open_onnx_teacher(Path(part.onnx), preprocessing.input_shape, classes)
        assert part.outputs is not None
        return read_outputs(Path(part.outputs), classes)


@contextmanager
def at_key(part: TeacherPart, path: str) -> Iterator[None]:
    """Let messages begin with the key of the recipe that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}.{kind_of(part)}: {error}") from None


def check_rows(file: OutputFile, data: Dataset) -> None:
    """Raise a UserError where an image of the data has no row, or there are others."""
    file.of_training(len(data.train))
    for prefix, images in judged_splits(data).items():
        file.of_split(prefix, len(images))


def name_of(part: TeacherPart) -> str:
    """The name of the file."""
    return Path(part.logits_file or "").name


def specs_of(classes: int) -> TapSpecs:
    """The taps of a teacher that gives logits of so many classes, and nothing else."""
    return TapSpecs((), (), None, None, None, num_classes=classes)


def describe_file(part: TeacherPart, network: nn.Module) -> dict[str, Any]:
    """What the description of a teacher says of its file."""
    path = Path(part.logits_file or "")
    return {
        "kind": kind_of(part),
        "file": path.name,
        "sha256": sha256_file(path),
        "size_bytes": path.stat().st_size,
        "parameters": network.parameters_of_file() if isinstance(network, OnnxTeacher) else None,
    }


def load(folder: Path, description: dict[str, Any]) -> Student:
    """A teacher of a run that gives logits only."""
    require_whole(folder, "teacher")
    tensors = read_tensors(folder / "teacher.safetensors")[0]
    if description[KEY]["kind"] == "onnx":
        return Student(OnnxTeacher(tensors["file"]), description)
    return Student(StoredOutputs(tensors["logits"]), description)


def evaluate_stored(
    file: OutputFile, stored: StoredOutputs, data: Dataset, job: Job, folder: Path, label: str
) -> dict[str, float]:
    """Metrics of stored rows on the training split and each split of which there are some.

    Raises:
        UserError: they say no more of the training images than chance does.
    """
    task, train = task_of(job.recipe), stored.logits
    assert isinstance(task, Classification)
    results: dict[str, float] = {}
    for prefix, images in judged_splits(data).items():
        rows = file.of_split(prefix, len(images))
        if rows is not None:
            values = task.evaluate(nn.Identity(), _batches(rows, images.labels.cpu()))
            results |= {f"{prefix}{key}": value for key, value in values.items()}
            if prefix == "":
                arrays = task.predict(nn.Identity(), _batches(rows, images.labels.cpu()))
                write_predictions(folder / PREDICTIONS, arrays, images.digest())
    known = task.evaluate(nn.Identity(), _batches(train, data.train.labels.cpu()))[task.metric]
    log(
        f"  {label}: targets are of images without augmentation, also where the student's are "
        f"augmented; they name the label of {task.format(known)} of {len(train):,} training images"
    )
    if known <= task.chance_level(len(data.class_names), len(train)):
        raise UserError(
            f"{label}: the stored logits name the label of {task.format(known)} of "
            f"{len(train):,} training images, which is chance; check that their rows and classes "
            "are in the order of the data"
        )
    return results | {f"train_{task.metric}": known}


def _batches(rows: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of logits with their labels, of which each process has its part."""
    parts = (torch.split(one, EVALUATION_BATCH) for one in (rows, labels))
    pairs = zip(*parts, strict=True)
    return iter([*pairs][rank() :: world_size()])


def check_use(recipe: Recipe, part: TeacherPart, path: str) -> list[str]:
    """Why a teacher that gives logits only cannot serve in a recipe."""
    kind = kind_of(part)
    if kind is None:
        return []
    source = f"{path}.{kind}"
    if recipe.task != "classification" or not recipe.data.labels:
        return [f"{source}: gives logits of whole images; used where images have labels only"]
    problems = []
    if recipe.engine.teacher != "float32":
        problems.append(
            f"engine.teacher: {recipe.engine.teacher} is arithmetic of networks; {path} is "
            f"{WORDS[kind]}, which is used as it is"
        )
    for label, method in recipe.methods.items():
        if known_method(method.name) and (reason := _reason(method, kind)):
            problems.append(f"distill: {label}: {reason}")
    return problems + [
        f"transfer.{i}.init: teacher is {WORDS[kind]}, which has no encoder"
        for i, entry in enumerate(recipe.transfer)
        if "teacher" in entry.init
    ]


def _reason(part: MethodPart, kind: Kind) -> str | None:
    """Why a method cannot learn from such a teacher."""
    needs = find_method(part.name).needs(part.arguments)
    beyond = [tap for tap in needs.teacher_taps if tap != "logits"]
    if beyond:
        return (
            f"{part.name} reads {', '.join(beyond)} of the teacher, and {WORDS[kind]} "
            f"{'gives' if kind == 'onnx' else 'give'} logits only; take a method that reads "
            "logits, such as kd or dkd"
        )
    if kind == "outputs" and any(view.rotation and view.teacher for view in needs.views):
        return f"{part.name} shows the teacher turned images, of which stored outputs have no rows"
    return None

"""Stages of a recipe: each module has `RESULT_VERSION` and `run(job) -> Outcome`.

A stage takes the recipe apart and calls what lies below it with plain values; nothing below knows
recipes. What two stages need of a recipe stands here.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.accounting import count_macs
from compress.comparison.predictions import PREDICTIONS, write_predictions
from compress.data import Dataset, ImageBatches, Images, evaluation_batches, open_data
from compress.data.augment import ImageView
from compress.data.dense.images import MaskedImages
from compress.data.dense.samples import sample_numbers, write_sample_masks
from compress.distributed.collectives import is_main_process
from compress.engine.checkpoint import Selection
from compress.engine.compiling import compile_taps, compiling_pays
from compress.engine.optimization import SCHEDULES, TrainSettings
from compress.recipe.schema import Recipe, Train
from compress.stages.job import Job
from compress.storage.files import read_tensors, write_tensors
from compress.taps import TappedForward, TapSpecs
from compress.tasks import Segmentation, Task, task_for

EVALUATION_BATCH = 256
REFERENCES = "references.safetensors"
# By the prefix of a split's results: of each teacher, what students are compared with there.
References = Mapping[str, Sequence[Tensor]]


def settings_from(train: Train) -> TrainSettings:
    """The loop's settings from a recipe's `train` section."""
    return TrainSettings(
        epochs=train.epochs,
        lr=train.lr,
        batch_size=train.batch_size,
        optimizer=train.optimizer.name,
        momentum=train.momentum,
        nesterov=train.nesterov,
        weight_decay=train.weight_decay,
        schedule=SCHEDULES[train.schedule.name](**train.schedule.arguments),
        accumulate=train.accumulate,
        precision=train.precision,
    )


def task_of(recipe: Recipe) -> Task:
    """The task that the recipe's networks are trained for."""
    return task_for(recipe.task, labels=recipe.data.labels, window=recipe.data.window)


def dataset_of(recipe: Recipe, device: torch.device | None = None) -> Dataset:
    """The recipe's data set, in memory on `device` (default: CPU); opened once per process."""
    data = _open(recipe.data.model_dump_json(), recipe.seed)
    return data if device is None or device.type == "cpu" else _moved(data, device)


@lru_cache(maxsize=1)
def _open(spec: str, seed: int) -> Dataset:
    return open_data(json.loads(spec), seed=seed)


@lru_cache(maxsize=1)
def _moved(data: Dataset, device: torch.device) -> Dataset:
    return data.to(device)


def compiles(job: Job, data: Dataset, network: nn.Module, train: Train, *, passes: int) -> bool:
    """Decide whether the recipe's engine compiles a network that is run `passes` times an image."""
    images = train.epochs * len(data.train)

    def macs() -> float:
        return float(passes * images * count_macs(network, data.preprocessing.input_shape).macs)

    return compiling_pays(
        job.recipe.engine.compile, job.device, macs=macs, steps=images // train.batch_size
    )


def compile_forward(
    job: Job,
    data: Dataset,
    network: nn.Module,
    specs: TapSpecs,
    wanted: Sequence[str],
    train: Train,
    *,
    name: str,
    rows: Callable[[], int],
) -> TappedForward | None:
    """A network that learns, compiled for `rows()` images; None where it is not or cannot be."""
    if not compiles(job, data, network, train, passes=3):  # backward is two
        return None
    network.to(job.device)
    wish = job.recipe.engine.compile
    return compile_taps(network, specs, wanted, name, wish=wish, rows=rows())


def training_batches(
    job: Job, data: Dataset, train: Train, *, augment: Sequence[str | ImageView], trial: int
) -> ImageBatches:
    """Augmented batches of the training split, one augmentation per view."""
    return ImageBatches(
        data.train,
        data.preprocessing,
        batch_size=train.batch_size,
        augment=augment,
        seed=order_seed(job.recipe, trial),
        device=job.device,
        workers=job.workers,
        views=job.recipe.data.views,
        views_seed=order_seed(job.recipe, 0),
    )


def order_seed(recipe: Recipe, trial: int) -> int:
    """The seed of order and augmentation: that of the trial, unless the recipe fixes it."""
    return recipe.seed + trial if recipe.data.seed is None else recipe.data.seed


def evaluate(
    network: nn.Module, data: Dataset, job: Job, references: References | None = None
) -> dict[str, float]:
    """The task's metric on the test split and, where there is one, on the validation split.

    `references` are those of the teachers, for a task that compares with them.
    """
    task = task_of(job.recipe)
    result: dict[str, float] = {}
    for prefix, images in judged_splits(data).items():
        batches, beside = _split_batches(images, data, job), (references or {}).get(prefix, ())
        result |= {f"{prefix}{k}": v for k, v in task.evaluate(network, batches, beside).items()}
    return result


def save_references(network: nn.Module, data: Dataset, job: Job, folder: Path) -> dict[str, Tensor]:
    """Write what students are compared with of a teacher; by the prefix of its split."""
    task = task_of(job.recipe)
    outputs = {
        prefix: task.reference(network, _split_batches(images, data, job))
        for prefix, images in judged_splits(data).items()
    }
    made = {prefix: output for prefix, output in outputs.items() if output is not None}
    if made:
        write_tensors(folder / REFERENCES, {f"{k}test": v for k, v in made.items()})
    return made


def read_references(folders: Sequence[Path]) -> References:
    """What `save_references` wrote for each teacher."""
    files = [folder / REFERENCES for folder in folders if (folder / REFERENCES).is_file()]
    references: dict[str, list[Tensor]] = {}
    for path in files:
        for key, output in read_tensors(path)[0].items():
            references.setdefault(key.removesuffix("test"), []).append(output)
    return references


def judge(network: nn.Module, data: Dataset, job: Job) -> dict[str, float]:
    """What labels that are hidden from training say of a trained network, where there are some."""
    splits = data.train, data.test
    labels = [images.hidden_labels for images in splits]
    batches = [_split_batches(images, data, job) for images in splits]
    if labels[0] is None or labels[1] is None:
        return {}
    task = task_of(job.recipe)
    return task.judge(network, (batches[0], labels[0]), (batches[1], labels[1]))


def judged_splits(data: Dataset) -> dict[str, Images]:
    """The splits that networks are evaluated on, by the prefix of their results."""
    validation = {"validation_": data.validation} if data.validation is not None else {}
    return {"": data.test, **validation}


def save_predictions(network: nn.Module, data: Dataset, job: Job, folder: Path) -> None:
    """Write what a network that is trained says of each test image to `predictions.npz`."""
    batches = _split_batches(data.test, data, job)
    arrays = task_of(job.recipe).predict(network, batches)
    if arrays:
        write_predictions(folder / PREDICTIONS, arrays, data.test.digest())
    if isinstance(data.test, MaskedImages) and is_main_process():
        write_sample_masks(folder, sample_masks(network, data.test, data, job))


@torch.no_grad()
def sample_masks(
    network: nn.Module, images: MaskedImages, data: Dataset, job: Job
) -> dict[int, Tensor]:
    """Predicted classes (H, W) of a few images, by their number."""
    task = task_of(job.recipe)
    assert isinstance(task, Segmentation)
    masks = {}
    for number in sample_numbers(images):
        pixels = images.fetch(torch.tensor([number]))[:, :3]
        normalised = data.preprocessing.normalise(pixels.to(job.device))
        masks[number] = task.classes(network.eval(), normalised, pixels.shape[-2:])[0].cpu()
    return masks


def _split_batches(images: Images, data: Dataset, job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a split, of which each process has its part."""
    return evaluation_batches(
        images, EVALUATION_BATCH, data.preprocessing, job.device, job.workers, shared=True
    )


def selection_of(task: Task, data: Dataset) -> Selection | None:
    """The epoch of a training that counts: the best on the validation split, where there is one."""
    if data.validation is None:
        return None
    return Selection(f"validation_{task.metric}", task.higher_is_better)


def summary(history: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """Headline and best-on-test of a training whose rows hold the task's metric, if it has one.

    The headline is the last epoch's, or that of the epoch with the best validation result.
    """
    metric, validation = task.metric, f"validation_{task.metric}"
    chosen = history[-1]
    if metric not in chosen:
        return {"selected_epoch": int(chosen["epoch"]), "epochs": len(history)}
    if validation in chosen:
        chosen = Selection(validation, task.higher_is_better).best(history)
    best = Selection(metric, task.higher_is_better).best(history)
    return {
        metric: chosen[metric],
        "selected_epoch": int(chosen["epoch"]),
        f"best_on_test_{metric}": best[metric],
        "best_on_test_epoch": int(best["epoch"]),
        "epochs": len(history),
        **_beside(history, chosen, task),
    }


def _beside(history: list[dict[str, Any]], chosen: dict[str, Any], task: Task) -> dict[str, float]:
    """Of each network that was evaluated beside the main one: in the chosen epoch, and its best."""
    values = {}
    for key in (key for key in chosen if key.startswith(f"{task.metric}/")):
        values[key] = chosen[key]
        values[f"best_on_test_{key}"] = Selection(key, task.higher_is_better).best(history)[key]
    return values

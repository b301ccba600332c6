"""A few steps of every training of a recipe, timed before any is trained.

They are the steps that the run will take, of the same stages, in a folder that is thrown away:
teachers have random weights, nothing is compiled and nothing cached. A run that does either takes
less.
"""

import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.console.messages import silently
from compress.engine.loop import Position
from compress.recipe.schema import MethodPart, Recipe, StudentPart, Train
from compress.run.stages import StageTable
from compress.stages import dataset_of
from compress.stages.job import Job

_STEPS = 4  # that are timed, after one that is not
_PATIENCE = 8.0  # seconds after which no further step is taken


@dataclass(frozen=True)
class Rehearsed:
    """A training, the seconds of one of its steps (the shortest), and how many it will take."""

    name: str
    step_seconds: float
    steps: int

    @property
    def seconds(self) -> float:
        """Of all its steps, without evaluations and checkpoints."""
        return self.step_seconds * self.steps


def rehearse(
    recipe: Recipe, stages: StageTable, device: torch.device, workers: int
) -> Iterator[Rehearsed]:
    """Time the trainings of a recipe that has been checked, in their order; of the first trial.

    A self-supervised teacher is left out: its training is no student's.
    """
    plain = {"engine": recipe.engine.model_copy(update={"compile": "never", "cache": None})}
    recipe = recipe.model_copy(update=plain)
    with tempfile.TemporaryDirectory(prefix="compress-check-") as place:
        run_folder = Path(place)
        for number, part in enumerate(recipe.teacher):
            if part.train is not None and part.ssl is None and part.model is not None:
                name = "teacher" if len(recipe.teacher) == 1 else f"teacher {number + 1}"
                alone = _alone(recipe, StudentPart(model=part.model, taps=part.taps), part.train)
                yield _timed(name, "none", alone, stages, run_folder, device, workers)
        folder = run_folder / "teacher"
        with silently():
            job = _job(folder, recipe, run_folder, device, workers)
            stages.load("teacher").write_untrained(job)
        for label in recipe.methods:
            yield _timed(f"distill/{label}", label, recipe, stages, run_folder, device, workers)


def _alone(recipe: Recipe, network: StudentPart, train: Train) -> Recipe:
    """The recipe of a network that learns from labels alone."""
    distill = recipe.distill.model_copy(
        update={"method": MethodPart(name="none"), "train": train, "compare": [], "weights": None}
    )
    return recipe.model_copy(update={"student": network, "distill": distill, "teacher": []})


def _timed(
    name: str,
    label: str,
    recipe: Recipe,
    stages: StageTable,
    run_folder: Path,
    device: torch.device,
    workers: int,
) -> Rehearsed:
    (run_folder / "teacher").mkdir(exist_ok=True)
    train = recipe.distill.train
    steps = max(1, len(dataset_of(recipe).train) // train.batch_size)
    arguments = {"part": recipe.methods[label], "label": label, "trial": 0}
    folder = run_folder / name.replace("/", "-")
    job = _job(folder, recipe, run_folder, device, workers, arguments)
    with silently():
        seconds = _step_seconds(stages.load("distill").learn(job), min(_STEPS, steps - 1))
    return Rehearsed(name, seconds, steps * train.epochs)


def _job(
    folder: Path,
    recipe: Recipe,
    run_folder: Path,
    device: torch.device,
    workers: int,
    arguments: dict[str, Any] | None = None,
) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(
        name=folder.name,
        folder=folder,
        run_folder=run_folder,
        arguments=arguments or {},
        device=device,
        workers=workers,
        recipe=recipe,
        recipe_fingerprint="",
    )


def _step_seconds(training: Generator[Position, None, Any], count: int) -> float:
    """Seconds of the shortest step; the first, which warms up, counts where it is the only one."""
    next(training)  # up to the first step
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 1 + count and time.perf_counter() - begun < _PATIENCE:
        start = time.perf_counter()
        if next(training, None) is None:
            break  # a training of one step has ended
        times.append(time.perf_counter() - start)
    training.close()
    return min(times[1:] or times, default=time.perf_counter() - begun)

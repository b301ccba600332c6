"""The transfer stage: a task on the distilled encoder against the same network from elsewhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.artifacts import Job, Outcome
from compress.stages import settings_from
from eval import linear_probe
from eval.context import Context
from eval.detection import task as detection
from eval.segmentation import task as segmentation

RESULT_VERSION = 1

# The keyword-only parameters of a task are the arguments of its recipe entry.
TASKS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "linear_probe": linear_probe.linear_probe,
    "detection": detection.detection,
    "segmentation": segmentation.segmentation,
}

# Data set functions take the folder for generated files, then keyword-only recipe arguments.
DATASETS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "linear_probe": linear_probe.DATASETS,
    "detection": detection.DATASETS,
    "segmentation": segmentation.DATASETS,
}

_ENTRY_KEYS = ("task", "name", "data", "init", "train")


def run(job: Job) -> Outcome:
    """Run one transfer entry; see `eval.context.compare_inits` for what is kept and resumed."""
    entry = dict(job.arguments)
    context = Context(
        folder=job.folder,
        students=trained_students(job.run_folder),
        main=main_label(job),
        inits=tuple(entry["init"]),
        data=entry["data"],
        settings=settings_from(entry["train"]),
        device=job.device,
        seed=job.recipe.seed,
    )
    arguments = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    values = {"task": entry["task"], **TASKS[entry["task"]](context, **arguments)}
    return Outcome(values=values, measured={})


def trained_students(run_folder: Path) -> dict[str, Path]:
    """Label -> folder of every student that the distill stage finished in this run."""
    files = sorted((run_folder / "distill").glob("*/student.json"))
    return {file.parent.name: file.parent for file in files}


def main_label(job: Job) -> str:
    """The label of the method that is shipped."""
    method = job.recipe.distill.method
    return method.label or method.name

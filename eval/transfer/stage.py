"""The transfer stage: a task on the distilled encoder against the same network from elsewhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.model_files.origins import origins_of
from compress.run.directory import RunDirectory
from compress.stages import settings_from
from compress.stages.job import Job, Outcome
from eval.detection import task as detection
from eval.knn import task as knn
from eval.linear_probe import task as linear_probe
from eval.segmentation import task as segmentation
from eval.transfer.context import OUTCOME, Context, files_of_training, student_of

RESULT_VERSION = 3

# The keyword-only parameters of a task are the arguments of its recipe entry.
TASKS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "linear_probe": linear_probe.linear_probe,
    "knn": knn.knn,
    "neighbours": knn.knn,  # its former name, which recipes and run directories have
    "detection": detection.detection,
    "segmentation": segmentation.segmentation,
}

# Data set functions take the folder for generated files, then keyword-only recipe arguments.
DATASETS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "linear_probe": linear_probe.DATASETS,
    "knn": knn.DATASETS,
    "neighbours": knn.DATASETS,
    "detection": detection.DATASETS,
    "segmentation": segmentation.DATASETS,
}

_ENTRY_KEYS = ("task", "name", "data", "init", "train", "seeds")


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """The outcome of every training and what it left, and the data that were generated."""
    trainings = [f"{row['init']}/seed-{seed}" for row in values.get("rows", ())
                 for seed in values.get("seeds", ())]  # fmt: skip
    found: dict[str, str | None] = {}
    for training in trainings:
        names = (OUTCOME, *files_of_training(folder / training))
        found |= {f"{training}/{name}": None for name in names}
    if (folder / "data").is_dir() and trainings:
        found["data"] = None
    return found


def run(job: Job) -> Outcome:
    """Run one transfer entry; `eval.transfer.context.compare_inits` keeps and resumes its parts."""
    entry = dict(job.arguments)
    first = job.recipe.seed
    context = Context(
        run=RunDirectory(job.run_folder, job.run_folder.name),
        stage=job.name,
        students=origins_of(job.run_folder),
        main=main_label(job),
        inits=tuple(entry["init"]),
        data=entry["data"],
        settings=settings_from(entry["train"]),
        device=job.device,
        seeds=tuple(range(first, first + entry.get("seeds", 1))),
        iterations=entry["train"].iterations,
        fields=job.fields,
        fresh=job.fresh,
    )
    arguments = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    return Outcome(values=evaluated(entry["task"], context, arguments), measured={})


def evaluated(task: str, context: Context, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` of a transfer result: what the task found, which networks it looked at."""
    labels = dict.fromkeys(student_of(context, init) for init in context.inits)
    told = {label: context.origin(label).describe() for label in labels}
    found = TASKS[task](context, **arguments)
    return {"task": task, **found, "seeds": list(context.seeds), "origins": told}


def main_label(job: Job) -> str:
    """The label of the method that is shipped."""
    method = job.recipe.distill.method
    return method.label or method.name

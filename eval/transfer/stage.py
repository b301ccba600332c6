"""The transfer stage: a task on the distilled encoder against the same network from elsewhere."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import nearest
from compress.model_files.origins import origins_of
from compress.recipe import signatures
from compress.recipe.schema import TransferPart
from compress.run.directory import RunDirectory
from compress.run.train_checks import check_transfer_train
from compress.stages import settings_from
from compress.stages.job import Outcome, StepJob
from eval.detection import task as detection
from eval.knn import task as knn
from eval.linear_probe import task as linear_probe
from eval.segmentation import task as segmentation
from eval.transfer.context import OUTCOME, TransferContext, files_of_training, student_of

RESULT_VERSION = 3
IN_EVERY_PROCESS = True

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


def check(entry: TransferPart, path: str) -> list[str]:
    """Problems of a recipe's entry for itself: its task, its data set, their arguments."""
    if entry.task not in TASKS:
        known, hint = ", ".join(TASKS), nearest(entry.task, TASKS)
        return [f"{path}.task: unknown task '{entry.task}'; known: {known}{hint}"]
    problems = signatures.check(TASKS[entry.task], entry.own_arguments, path)
    problems += signatures.check_named(entry.data, DATASETS[entry.task], f"{path}.data")
    problems += check_transfer_train(entry.train, f"{path}.train")
    root = entry.data.arguments.get("root")
    if isinstance(root, str) and not os.path.isdir(root):
        problems.append(f"{path}.data.root: folder '{root}' not found (looked in {Path.cwd()})")
    return problems


def schema() -> dict[str, Any]:
    """JSON schema of the arguments of every task."""
    return {name: signatures.schema(task) for name, task in TASKS.items()}


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """The outcome of every training and what it left, and the data that were generated."""
    trainings = [f"{row['init']}/seed-{seed}" for row in values.get("rows", ())
                 for seed in values.get("seeds", ())]  # fmt: skip
    digest_by_file: dict[str, str | None] = {}
    for training in trainings:
        names = (OUTCOME, *files_of_training(folder / training))
        digest_by_file |= {f"{training}/{name}": None for name in names}
    for name in ("data", "ground_truth.json"):
        if (folder / name).exists() and trainings:
            digest_by_file[name] = None
    return digest_by_file


def run(job: StepJob) -> Outcome:
    """Run one transfer entry; `eval.transfer.context.compare_inits` keeps and resumes its parts."""
    context, task = context_of(job), job.arguments["task"]
    labels = dict.fromkeys(student_of(context, init) for init in context.inits)
    origins = {label: context.origin(label).describe() for label in labels}
    values = TASKS[task](context, **job.arguments["arguments"])
    values = {"task": task, **values, "seeds": list(context.seeds), "origins": origins}
    return Outcome(values=values, measured={})


def context_of(job: StepJob) -> TransferContext:
    """A transfer step as its task receives it; its arguments are those of `transfer_arguments`."""
    arguments = job.arguments
    return TransferContext(
        run=RunDirectory(job.run_folder, job.run_folder.name),
        stage=job.name,
        students=arguments.get("students") or origins_of(job.run_folder),
        main=arguments["main"],
        inits=tuple(arguments["init"]),
        data=arguments["data"],
        settings=settings_from(arguments["train"]),
        device=job.device,
        seeds=tuple(arguments["seeds"]),
        iterations=arguments["train"].iterations,
        allow_partial=arguments.get("allow_partial", False),
        fields=job.fields,
        fresh=job.fresh,
    )

"""A transfer command: its options checked, and the plan of its steps."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress.errors import UserError
from compress.model_files.origins import open_origin, origins_of
from compress.recipe.files import parse_yaml
from compress.recipe.schema import TRANSFER_TRAIN, TransferPart, describe_errors
from compress.run.directory import RunDirectory
from compress.run.plan import PlannedStep, RunPlan, transfer_arguments
from compress.run.train_checks import check_transfer_train
from compress.storage.results import find_run
from eval.transfer.context import ALONE, DISTILLED, SCRATCH, digest_of_init, label_of
from eval.transfer.options import read_arguments, recognise_dataset
from eval.transfer.stage import DATASETS, TASKS


@dataclass(frozen=True)
class TransferRequest:
    """A transfer command that has been checked.

    `data` is label -> {name, **arguments} of each data set, `students` label -> origin of every
    network that is there, `main` the label of the one that counts as distilled, `name` that of the
    origin: of students of two runs their runs' names, too.
    """

    part: TransferPart
    arguments: dict[str, Any]
    data: dict[str, dict[str, Any]]
    students: dict[str, Path | str]
    main: str
    name: str
    out: Path | None
    allow_partial: bool

    @property
    def directory(self) -> RunDirectory:
        """The run directory of the request."""
        task = self.part.task
        return RunDirectory(self.out or Path("runs") / f"{task}-{self.name}", f"eval.{task}")

    def plan(self) -> RunPlan:
        """A transfer step per data set.

        Raises:
            UserError: an init's weights cannot be read, or do not fit its encoder.
        """
        origins = {init: self._digest(init) for init in self.part.init}
        steps = []
        for label, data in self.data.items():
            arguments = transfer_arguments(
                self.part,
                data=data,
                own=self.arguments,
                main=self.main,
                seeds=tuple(range(self.part.seeds)),
                students=self.students,
                allow_partial=self.allow_partial,
                origins=origins,
            )
            steps.append(PlannedStep(f"transfer/{label}", arguments))
        return RunPlan(steps)

    def _digest(self, init: str) -> tuple[str, str]:
        """The student of an init, and a digest of what the init takes from it."""
        label = label_of(init, self.students, self.main)
        origin = open_origin(str(self.students[label]), allow_partial=self.allow_partial)
        return label, digest_of_init(init, origin)


def read_request(task: str, options: argparse.Namespace) -> TransferRequest:
    """Check everything that a command line says.

    Raises:
        UserError: with every problem of its arguments.
    """
    data, problems = _data(task, options)
    arguments, others = read_arguments(options, "task", TASKS[task])
    if problems + others:
        raise UserError("; ".join(problems + others))
    students, main, beside = _students(options)
    alone = [ALONE] if "none" in students else []
    inits = options.init or [DISTILLED, *alone, *beside, SCRATCH]
    try:
        part = TransferPart.model_validate(
            {
                "task": task,
                "data": "-",  # those of the command have a label each
                "train": _train(task, options),
                "init": list(inits),
                "seeds": options.seeds,
            }
        )
    except ValidationError as error:
        raise UserError("; ".join(describe_errors(error, TransferPart))) from None
    if problems := check_transfer_train(part.train, "train"):
        raise UserError("; ".join(problems))
    for init in inits:
        label_of(init, students, main)
    run = find_run(Path(options.origins[0]))
    name = f"{run.resolve().name}-{main}" if run else main
    return TransferRequest(
        part, arguments, data, students, main, name, options.out, options.allow_partial
    )


def _train(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """The task's usual training with what was given for it, each value as YAML."""
    overrides = {
        key.removeprefix("train."): value if isinstance(value, bool) else parse_yaml(value, key)
        for key, value in vars(options).items()
        if key.startswith("train.")
    }
    usual = dict(TRANSFER_TRAIN[task])
    if "iterations" in overrides:
        usual.pop("epochs", None)
    return {**usual, **overrides}


def _data(task: str, options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Label -> description of each data set, and what is wrong with their arguments."""
    if not options.data and options.dataset is None:
        raise UserError(f"give --data DIR, or --dataset of {', '.join(DATASETS[task])}")
    data_sets: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for root in options.data or [None]:
        name = options.dataset or recognise_dataset(task, root)
        arguments, wrong = read_arguments(options, "data", DATASETS[task][name])
        label = root.resolve().name if root else name
        place = {"root": str(root)} if root else {}
        data_sets[label if label not in data_sets else f"{label}-{len(data_sets)}"] = {
            "name": name, **place, **arguments}  # fmt: skip
        problems += wrong
    return data_sets, problems


def _students(options: argparse.Namespace) -> tuple[dict[str, Path | str], str, list[str]]:
    """Label -> place of every network that is there, the main one, and those given beside it.

    A student of a run brings the others of the run, for a comparison with the student alone.
    """
    first = Path(options.origins[0])
    run = find_run(first)
    students: dict[str, Path | str] = dict(origins_of(run)) if run else {}
    names = []
    for number, place in enumerate(options.origins):
        origin = open_origin(place, model=options.model, allow_partial=options.allow_partial)
        name = origin.name
        if number and name in students:
            name = f"{name}-{number + 1}"
        if name not in names:
            names.append(name)
        if run is None or number or first.resolve() != run.resolve():
            students[name] = origin.reference
    return students, names[0], names[1:]

"""What the command line of a transfer task asks for, checked before anything runs."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from compress.errors import UserError
from compress.model_files.origins import open_origin, origins_of
from compress.recipe.files import parse_yaml
from compress.recipe.schema import TRANSFER_TRAIN, TransferPart, describe_errors
from compress.run.directory import RunDirectory
from compress.run.launch import usable_device
from compress.run.train_checks import check_transfer_train
from compress.stages import settings_from
from compress.storage.fingerprints import fingerprint_of_folder
from eval.transfer.context import ALONE, DISTILLED, SCRATCH, Context, student_of
from eval.transfer.options import given_for, recognised
from eval.transfer.stage import DATASETS, RESULT_VERSION, TASKS


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, checked, and the directory where it is done."""

    task: str
    directory: RunDirectory
    part: TransferPart
    arguments: dict[str, Any]
    data: dict[str, dict[str, Any]]  # label -> {name, **arguments}
    students: dict[str, Path | str]
    main: str
    inits: tuple[str, ...]
    device: torch.device
    allow_partial: bool

    def context(self, label: str, fields: Mapping[str, Any]) -> Context:
        """The entry of one data set; `fields` are those of it."""
        return Context(
            run=self.directory,
            stage=f"transfer/{label}",
            students=self.students,
            main=self.main,
            inits=self.inits,
            data=self.data[label],
            settings=settings_from(self.part.train),
            device=self.device,
            seeds=tuple(range(self.part.seeds)),
            iterations=self.part.train.iterations,
            allow_partial=self.allow_partial,
            fields=fields,
        )

    def fields(self, label: str) -> dict[str, Any]:
        """What every training on a data set depends on; inits and seeds have folders each."""
        return {
            "task": self.task,
            "version": RESULT_VERSION,
            "data": _with_digest(self.data[label]),
            "train": self.part.train.model_dump(),
            "arguments": self.arguments,
        }


def asked_of(task: str, options: argparse.Namespace) -> Asked:
    """Everything that a command line says, or a message that says what is wrong with it."""
    data, problems = _data(task, options)
    arguments, found = given_for(options, "task", TASKS[task])
    if problems + found:
        raise UserError("; ".join(problems + found))
    students, main, others = _students(options)
    alone = [ALONE] if "none" in students else []
    inits = tuple(options.init or [DISTILLED, *alone, *others, SCRATCH])
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
    directory = RunDirectory(options.out or Path("runs") / f"{task}-{main}", f"eval.{task}")
    asked = Asked(task, directory, part, arguments, data, students, main, inits,
                  usable_device(options.device), options.allow_partial)  # fmt: skip
    context = asked.context(next(iter(data)), {})
    for init in inits:
        student_of(context, init)
    return asked


def _train(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """The task's usual training with what was given for it, each value as YAML."""
    given = {
        key.removeprefix("train."): value if isinstance(value, bool) else parse_yaml(value, key)
        for key, value in vars(options).items()
        if key.startswith("train.")
    }
    usual = dict(TRANSFER_TRAIN[task])
    if "iterations" in given:
        usual.pop("epochs", None)
    return {**usual, **given}


def _data(task: str, options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Label -> description of each data set, and what is wrong with their arguments."""
    if not options.data and options.dataset is None:
        raise UserError(f"give --data DIR, or --dataset of {', '.join(DATASETS[task])}")
    found: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for root in options.data or [None]:
        name = options.dataset or recognised(task, root)
        arguments, wrong = given_for(options, "data", DATASETS[task][name])
        label = root.resolve().name if root else name
        place = {"root": str(root)} if root else {}
        found[label if label not in found else f"{label}-{len(found)}"] = {
            "name": name, **place, **arguments}  # fmt: skip
        problems += wrong
    return found, problems


def _students(options: argparse.Namespace) -> tuple[dict[str, Path | str], str, list[str]]:
    """Label -> place of every network that is there, the main one, and those given beside it.

    A student of a run brings the others of the run, for a comparison with the student alone.
    """
    first = Path(options.origins[0])
    places = [first, *first.absolute().parents][:4]
    run = next((place for place in places if (place / "resolved.yaml").is_file()), None)
    students: dict[str, Path | str] = dict(origins_of(run)) if run else {}
    names = []
    for number, given in enumerate(options.origins):
        origin = open_origin(given, model=options.model, allow_partial=options.allow_partial)
        name = origin.name
        if number and name in students:
            name = f"{name}-{number + 1}"
        if name not in names:
            names.append(name)
        if run is None or number or first.resolve() != run.resolve():
            students[name] = origin.given
    return students, names[0], names[1:]


def _with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """A folder is known by what it holds, not by where it lies."""
    root = data.get("root")
    return dict(data) if root is None else {**data, "root": fingerprint_of_folder(Path(root))}

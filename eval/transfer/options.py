"""A task's command-line options, made from its signature and from those of its data sets."""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.recipe import signatures
from compress.recipe.files import parse_yaml
from eval.transfer.stage import DATASETS, TASKS

# What lies in the folder of a data set -> which of a task's data sets it may be.
_MARKS: Mapping[str, tuple[str, ...]] = {
    "voc": ("Annotations", "VOC*/Annotations", "VOCdevkit/VOC*/Annotations"),
    "coco": ("annotations/*.json",),
    "voc_segmentation": ("SegmentationClass", "VOC*/SegmentationClass"),
    "cityscapes": ("leftImg8bit",),
    "camvid": ("*annot",),
    "stl10": ("stl10_binary", "train_X.bin"),
    "tiny_imagenet": ("val/val_annotations.txt",),
    "image_folder": ("test/*/", "val/*/", "valid/*/", "validation/*/"),
}
Arguments = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, task: str) -> None:
    """Add an option for every keyword of the task, and for every one of its data sets."""
    own = parser.add_argument_group(f"the task's own ({task})")
    for name, (hint, default) in signatures.arguments_of(TASKS[task]).items():
        _add(own, "task", name, [hint], default)
    group = parser.add_argument_group("the data set's")
    hints: dict[str, list[Any]] = {}
    for make in DATASETS[task].values():
        for name, (hint, _) in signatures.arguments_of(make).items():
            hints.setdefault(name, []).append(hint)
    for name, hint in hints.items():
        if name != "root":
            _add(group, "data", name, hint, inspect.Parameter.empty)


def _add(group: Any, kind: str, name: str, hints: Sequence[Any], default: Any) -> None:
    flag = "--" + name.replace("_", "-")
    if flag in group._option_string_actions:  # the task or the command has it: the data's is told
        flag = f"--{kind}-{name.replace('_', '-')}"
    help_text = "" if default is inspect.Parameter.empty else f"default: {default}"
    shared = {"dest": f"{kind}.{name}", "default": argparse.SUPPRESS, "help": help_text}
    if all(hint is bool for hint in hints):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
    else:
        group.add_argument(flag, nargs="+", metavar=name.upper(), **shared)


def read_arguments(
    options: argparse.Namespace, kind: str, function: Callable[..., Any]
) -> tuple[Arguments, list[str]]:
    """The arguments that were given for a function, read by its types, and their problems."""
    hints = {name: hint for name, (hint, _) in signatures.arguments_of(function).items()}
    texts = {
        name.removeprefix(f"{kind}."): value
        for name, value in vars(options).items()
        if name.startswith(f"{kind}.")
    }
    arguments = {name: _read(value, hints.get(name, str), name) for name, value in texts.items()}
    return arguments, signatures.check(function, arguments, kind, supplied=("root",))


def _read(texts: bool | list[str], hint: Any, name: str) -> Any:
    """Words of the command line as a value: the first of their readings that the type accepts."""
    if isinstance(texts, bool):
        return texts
    parsed = [parse_yaml(text, f"--{name}") for text in texts]
    readings: list[Any] = [texts[0], parsed[0]] if len(texts) == 1 else []
    if _takes_several(hint):
        readings += [texts, parsed]
    adapter = TypeAdapter(hint)
    for reading in readings:
        try:
            adapter.validate_json(json.dumps(reading), strict=True)
            return reading
        except (ValidationError, TypeError):
            continue
    return parsed[0] if len(parsed) == 1 else parsed


def _takes_several(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_takes_several(part) for part in get_args(hint))
    return get_origin(hint) in (tuple, list)


def recognise_dataset(task: str, root: Path) -> str:
    """Which of a task's data sets has the layout of a folder.

    Raises:
        UserError: none, or more than one.
    """
    if not root.is_dir():
        raise UserError(f"--data: folder '{root}' not found (looked in {Path.cwd()})")
    readers = [n for n, f in DATASETS[task].items() if "root" in signatures.arguments_of(f)]
    fitting = [n for n in readers if any(any(root.glob(m)) for m in _MARKS.get(n, ()))]
    if "tiny_imagenet" in fitting:
        fitting = ["tiny_imagenet"]  # its val/images looks like the folder of a class
    if len(fitting) != 1:
        what = "is none that is recognised" if not fitting else f"may be {' or '.join(fitting)}"
        raise UserError(f"--data: the layout of '{root}' {what}; say --dataset {'|'.join(readers)}")
    return fitting[0]

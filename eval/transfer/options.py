"""A task's command-line options, made from its signature and from those of its data sets."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.recipe import signatures
from compress.recipe.files import parse_yaml
from eval.data.boxes import has_boxes
from eval.transfer.stage import DATASETS, TASKS

# What lies in the folder of a data set -> which of a task's data sets it may be.
_MARKS: Mapping[str, tuple[str, ...]] = {
    "voc": ("ImageSets/Main", "VOC*/ImageSets/Main", "VOCdevkit/VOC*/ImageSets/Main"),
    "coco": ("annotations/instances_train.json",),
    "voc_segmentation": ("SegmentationClass", "VOC*/SegmentationClass"),
    "cityscapes": ("leftImg8bit",),
    "camvid": ("*annot",),
    "stl10": ("stl10_binary", "train_X.bin"),
    "tiny_imagenet": ("val/val_annotations.txt",),
    "image_folder": ("test/*/", "val/*/", "valid/*/", "validation/*/"),
}
Arguments = dict[str, Any]


# Of the data sets' own arguments, which their docstrings explain in sentences.
_OF_DATA = {
    "classes": "names of the classes, or of scenes of digits how many (default: those found)",
    "train": "name of the training split (default: the layout's)",
    "test": "name of the split that is judged (default: the layout's)",
    "train_share": "without splits, the share of images to train on (default: 0.8)",
    "train_images": "scenes, or images, to train on",
    "test_images": "scenes, or images, to judge",
    "image_size": "pixels of an image's side",
    "void": "value of a mask's pixels that are ignored",
    "class_names": "names of the mask's values 0, 1, 2, ...",
    "seed": "of the scenes",
}


def explained(function: Callable[..., Any]) -> dict[str, str]:
    """Argument -> what the `Args:` of a docstring in Google's style say of it, in one line."""
    section = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2]
    section = section.partition("\n\n")[0]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        head = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            texts |= dict.fromkeys(names, head[2].strip())
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def add_options(parser: argparse.ArgumentParser, task: str) -> None:
    """Add an option for every keyword of the task, and for every one of its data sets."""
    own = parser.add_argument_group(f"the task's own ({task})")
    about = explained(TASKS[task])
    for name, (hint, default) in signatures.arguments_of(TASKS[task]).items():
        _add(own, "task", name, [hint], f"{about.get(name, '')} (default: {default})".strip())
    group = parser.add_argument_group("the data set's")
    hints: dict[str, list[Any]] = {}
    for make in DATASETS[task].values():
        for name, (hint, _) in signatures.arguments_of(make).items():
            hints.setdefault(name, []).append(hint)
    for name, hint in hints.items():
        if name != "root":
            _add(group, "data", name, hint, _OF_DATA.get(name, "see the data set's docstring"))


def _add(group: Any, kind: str, name: str, hints: Sequence[Any], help_text: str) -> None:
    flag = "--" + name.replace("_", "-")
    if flag in group._option_string_actions:  # the task or the command has it: the data's is told
        flag = f"--{kind}-{name.replace('_', '-')}"
    shared = {
        "dest": f"{kind}.{name}",
        "default": argparse.SUPPRESS,
        "help": help_text.replace("%", "%%"),
    }
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
    if "boxes" in readers and not fitting and has_boxes(root):
        fitting = ["boxes"]
    if len(fitting) != 1:
        what = "is none that is recognised" if not fitting else f"may be {' or '.join(fitting)}"
        raise UserError(f"--data: the layout of '{root}' {what}; say --dataset {'|'.join(readers)}")
    return fitting[0]

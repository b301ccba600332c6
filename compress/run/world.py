"""What a recipe finds and needs on this machine: data, networks, disk, memory, time."""

import os
import resource
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from compress import models
from compress.accounting import count_macs, count_parameters
from compress.data import Dataset, FileImages, some_sizes
from compress.recipe.schema import Named, Recipe, TeacherPart
from compress.run.place_checks import memory_of
from compress.run.probe import Shapes
from compress.run.rehearsal import Rehearsed
from compress.stages import dataset_of, task_of
from compress.text import duration, printable

Finding = tuple[str, str]  # what was looked at, and what was found

_LOOKED_AT = 32  # files whose size in pixels is read
_BYTES = 4  # of a parameter
# Copies of the parameters in a training's folder: weights, gradient's momentum, twice, since the
# checkpoint before the last is kept; the student's own file.
_COPIES = 5
_GB = 1e9


def describe_data(recipe: Recipe) -> Iterator[Finding]:
    """Images, classes and sizes of the data set, which is opened."""
    data = dataset_of(recipe)
    splits = [f"{len(data.train):,} training images", f"{len(data.test):,} test images"]
    if data.validation is not None:
        splits.insert(1, f"{len(data.validation):,} for validation")
    yield "data", f"{recipe.data.name}: {', '.join(splits)}"
    task = task_of(recipe)
    if task.has_classes:
        yield "classes", _describe_classes(data, counts=not task.is_dense)
    size = data.preprocessing.image_size
    yield "images", f"{_describe_files(data.train)}read as {size} x {size}"


def _describe_classes(data: Dataset, *, counts: bool) -> str:
    names = [printable(name) for name in data.class_names]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    if not counts:
        return f"{len(names)}: {shown}"
    of_class = torch.bincount(data.train.labels.cpu(), minlength=len(names)).tolist()
    least, most = min(of_class), max(of_class)
    if least == most:
        return f"{len(names)} ({shown}), {most:,} training images each"
    few, many = (names[of_class.index(count)] for count in (least, most))
    return f"{len(names)} ({shown}), {least:,} ({few}) to {most:,} ({many}) training images"


def _describe_files(images: object) -> str:
    """Sizes of some of the files, for images that are decoded on reading."""
    if not isinstance(images, FileImages):
        return ""
    sizes = some_sizes(images, _LOOKED_AT)
    width, height = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return f"files of {width} x {height} (median of {len(sizes)} looked at), "


def describe_networks(recipe: Recipe, shapes: Shapes | None) -> Iterator[Finding]:
    """Parameters and MACs of each network, and what each method's student ships beyond its own."""
    data = dataset_of(recipe)
    shape, classes = data.preprocessing.input_shape, len(data.class_names)
    several = len(recipe.teacher) > 1
    for number, part in enumerate(recipe.teacher):
        name = f"teacher {number + 1}" if several else "teacher"
        if part.model is None:
            yield name, part.checkpoint or part.logits_file or ""
            continue
        network = models.build(part.model.name, num_classes=classes, **part.model.arguments)
        yield name, f"{part.model.name}, {_source(part)}: {_costs(network, shape)}"
    model = recipe.student.model
    student = models.build(model.name, num_classes=classes, **model.arguments)
    yield "student", f"{model.name}: {_costs(student, shape)}"
    if shapes is not None:
        added = [f"{label} {count:+,}" for label, count in shapes.added.items() if count]
        if added:
            yield "student ships with", f"{', '.join(added)} parameters"


def _source(part: TeacherPart) -> str:
    given = part.checkpoint or part.weights
    learns = f"trained for {part.train.epochs} epochs" if part.train else ""
    return ", ".join(filter(None, [given, learns]))


def _costs(network: nn.Module, shape: tuple[int, int, int]) -> str:
    macs = count_macs(network, shape).macs
    return f"{count_parameters(network) / 1e6:,.2f} M parameters, {macs / 1e6:,.0f} M MACs"


def describe_disk(recipe: Recipe, shapes: Shapes | None, folder: Path) -> Iterator[Finding]:
    """Bytes that the run may write, about, beside those that are free."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    needed = 0.0
    if shapes is not None:
        methods = (m for m in shapes.methods.values())
        state = sum(t.numel() for m in methods for t in (*m.parameters(), *m.buffers()))

        def parameters_of(model: Named) -> int:
            return count_parameters(models.build(model.name, num_classes=10, **model.arguments))

        students = 1 + len(recipe.methods) * recipe.trials
        parameters = students * parameters_of(recipe.student.model) + sum(
            parameters_of(part.model) for part in recipe.teacher if part.model is not None
        )
        needed = _BYTES * _COPIES * (parameters + state * recipe.trials)
    cache = recipe.engine.cache
    kept = f", at most {cache.max_gb:g} GB of teacher's outputs each" if cache is not None else ""
    room = needed + (cache.max_gb * _GB if cache is not None else 0)
    short = "; THIS IS NOT ENOUGH" if room > free else ""
    yield (
        "disk",
        (
            f"about {needed / _GB:.2f} GB of checkpoints and models{kept}; "
            f"{free / _GB:,.1f} GB free at {place}{short}"
        ),
    )


def describe_memory(device: torch.device) -> Iterator[Finding]:
    """The most memory that this process has had so far."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
        what = "on the GPU for a step"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = peak * (1 if sys.platform == "darwin" else 1024)
        what = "for data, networks and a step"
    total = memory_of(device)
    yield "memory", f"{used / _GB:.1f} GB {what}; this machine has {total / _GB:.0f} GB"


def describe_time(
    recipe: Recipe, rehearsal: Callable[[], Iterator[Rehearsed]]
) -> Iterator[Finding]:
    """Time of each training, from a few of its steps, and of all of them."""
    total = 0.0
    for one in rehearsal():
        students = recipe.trials if one.name.startswith("distill/") else 1
        total += one.seconds * students
        each = " for each trial" if students > 1 else ""
        yield (
            one.name,
            (
                f"{one.steps:,} steps of {1000 * one.step_seconds:,.0f} ms: "
                f"{duration(one.seconds)}{each}"
            ),
        )
    threads = torch.get_num_threads()
    cores = f"{threads} of {os.cpu_count()} cores" if threads != os.cpu_count() else "all cores"
    yield (
        "time",
        (
            f"about {duration(total)} of training ({cores}); evaluation, export and transfer "
            "come on top"
        ),
    )

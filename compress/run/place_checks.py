"""Problems of what a recipe needs of this machine: files, folders and memory."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from compress.data import CLASS_NAMES, IMAGE_SIZES, Preprocessing, look_at_classes
from compress.errors import UserError, nearest
from compress.model_files.weights import published_weights
from compress.recipe import signatures
from compress.recipe.schema import Data, Named, Recipe
from compress.stages import logits_only
from compress.stages.teacher import own_description, requested_preprocessing
from compress.storage.files import read_tensors
from compress.taps import TapSpecs
from compress.text import is_line, short_repr

_BYTES = 4  # of a float32


def check_places(recipe: Recipe) -> list[str]:
    """Problems of files and folders that a recipe names; opens no images."""
    problems = _check_data(recipe.data, is_exported=recipe.export is not None)
    problems += _check_logits_files(recipe)
    for i, teacher in enumerate(recipe.teacher):
        path = "teacher.checkpoint" if len(recipe.teacher) == 1 else f"teacher.{i}.checkpoint"
        if teacher.checkpoint is None or teacher.model is not None:
            continue  # with a model, the file is read into it
        if not os.path.isfile(teacher.checkpoint):
            continue  # told where names are checked
        try:
            if own_description(teacher) is None:
                problems.append(
                    f"{path}: '{teacher.checkpoint}' has no .json beside it that names its "
                    "architecture; give `model` too"
                )
            read_tensors(Path(teacher.checkpoint))
        except (UserError, OSError) as error:
            problems.append(f"{path}: {error}")
    cache = recipe.engine.cache
    if cache is not None and cache.folder and (reason := _not_writable(cache.folder)):
        problems.append(f"engine.cache.folder: '{cache.folder}' {reason}")
    return problems


def _check_logits_files(recipe: Recipe) -> list[str]:
    """Files of teachers that give logits only, beside what is known of the data unopened."""
    size = recipe.data.image_size or IMAGE_SIZES.get(recipe.data.name)
    problems = []
    for i, teacher in enumerate(recipe.teacher):
        file = teacher.logits_file
        if size is None or file is None or not os.path.isfile(file) or not os.access(file, os.R_OK):
            continue  # told elsewhere
        path = "teacher" if len(recipe.teacher) == 1 else f"teacher.{i}"
        try:
            usual = Preprocessing(size, (0, 0, 0), (1, 1, 1))
            seen = requested_preprocessing(teacher, usual)
            logits_only.open_file(teacher, path, seen, recipe.data.classes)
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_data(data: Data, *, is_exported: bool) -> list[str]:
    if data.name not in CLASS_NAMES:
        return []
    look = look_at_classes(data.name, labels=data.labels)
    arguments = {k: v for k, v in data.arguments.items() if k in signatures.arguments_of(look)}
    if signatures.check(look, arguments, "data"):
        return []  # told where arguments are checked
    try:
        names = look(**arguments)
    except (UserError, OSError) as error:
        return [str(error)]
    if not data.labels:
        return []
    problems = []
    if data.classes is not None and data.classes > len(names):
        problems.append(f"data.classes: asks for {data.classes}, the data set has {len(names)}")
    if is_exported:
        problems += [
            f"data: class name {short_repr(name)} is no line of text for labels.txt; rename it"
            for name in names[: data.classes]
            if not is_line(name)
        ]
    return problems


def check_weights(weights: str | None, model: Named | None, path: str) -> list[str]:
    """A file that must be there to be read, unless it is the name of published weights."""
    published = []
    if model is not None:  # a network that segments has an encoder by name
        names = (model.name, str(model.arguments.get("encoder", "")))
        published = [weights for name in names for weights in published_weights(name)]
    if weights is None or weights in published:
        return []
    if os.path.isfile(weights):
        return [] if os.access(weights, os.R_OK) else [f"{path}: '{weights}' cannot be read"]
    known = f"; published for it: {', '.join(published)}" if published else ""
    place = f"(looked in {Path.cwd()})"
    return [f"{path}: '{weights}' not found {place}{known}{nearest(weights, published)}"]


def _not_writable(folder: str) -> str | None:
    """Why nothing can be written below a folder that may still have to be made."""
    for place in (Path(folder).absolute(), *Path(folder).absolute().parents):
        if os.path.isdir(place):
            may_write = os.access(place, os.W_OK | os.X_OK)
            return None if may_write else f"cannot be written to: {place} is not yours to write"
        if os.path.lexists(place):
            return f"cannot be a folder: {place} is a file"
    return None


def memory_of(device: torch.device) -> int:
    """Bytes of memory that what runs on a device can have at most."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_batches(
    recipe: Recipe, networks: Mapping[str, TapSpecs], size: int, device: torch.device
) -> list[str]:
    """Batches that would be timed only after training, and cannot be: more than the memory holds.

    Args:
        networks: the taps of each network by its name, for images of `size` x `size`.
    """
    if recipe.account is None:
        return []
    maps = {"images": (3, size, size)}
    for name, specs in networks.items():
        for spec in specs.stages:
            maps[f"{spec.path} of {name}"] = (spec.channels, spec.height, spec.width)
    largest = max(maps, key=lambda name: math.prod(maps[name]))
    available = memory_of(device)
    return [
        f"account.latency.batch_sizes: a batch of {batch:,} cannot be timed: its {largest} alone "
        f"take {needed:,} bytes ({' x '.join(map(str, (batch, *maps[largest])))}, float32), "
        f"{device} has {available:,}; give smaller batches"
        for batch in dict.fromkeys(recipe.account.latency.batch_sizes)
        if (needed := batch * math.prod(maps[largest]) * _BYTES) > available
    ]

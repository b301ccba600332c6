"""Teachers as a run gives them, and the settings of their inference."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from compress.data import ImageBatches, Images, Preprocessing
from compress.data.augment import ImageView
from compress.errors import UserError
from compress.taps import TapSpecs
from compress.taps.graph import TappedGraph, Untraceable

Arithmetic = Literal["float32", "bfloat16", "int8"]


def arithmetic_name(arithmetic: Arithmetic) -> str:
    """The arithmetic as results and caches know it.

    int8 had 8-bit weights before, whose products saturate on some CPUs: none of its targets is
    taken for one of 7-bit weights.
    """
    return "int8, 7-bit weights" if arithmetic == "int8" else arithmetic


def check_arithmetic(arithmetic: Arithmetic, device: torch.device) -> None:
    """Refuse, before anything is trained, a teacher's arithmetic that the device does not have."""
    if arithmetic == "int8" and device.type != "cpu":
        raise UserError(
            f"engine.teacher: int8 runs on the CPU alone, this run is on {device}; take bfloat16 "
            "there, or give --device cpu"
        )


def check_int8(network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> None:
    """Refuse, before anything is trained, a teacher that cannot be made int8 for these taps."""
    try:
        TappedGraph(copy.deepcopy(network).eval(), specs, wanted)
    except Untraceable as reason:
        raise UserError(
            f"the teacher cannot be made int8: {reason}; set engine.teacher to bfloat16 or float32"
        ) from None


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode, on the device where students learn.

    name: in messages; specs: where it can be tapped; preprocessing: of the images that it reads,
    which are made of those of the batches where these are prepared otherwise; identity: plain
    values that its outputs depend on, weights and architecture; compile: whether a run is long
    enough for it.
    """

    name: str
    network: nn.Module
    specs: TapSpecs
    preprocessing: Preprocessing
    identity: Mapping[str, Any]
    compile: bool = False


@dataclass(frozen=True)
class CacheSettings:
    """A folder for caches, the type in which they hold outputs, and the most bytes of one."""

    folder: Path
    dtype: torch.dtype
    max_bytes: int


@dataclass(frozen=True)
class InferenceSettings:
    """Arithmetic of teachers, and the cache of their outputs, if any."""

    arithmetic: Arithmetic = "float32"
    cache: CacheSettings | None = None


@dataclass(frozen=True)
class TeacherImages:
    """Images on which teachers run.

    batches: those that the student learns from, mostly `rows` images at once, `epochs` times;
    views: those that teachers see, by their numbers; train: calibrates an int8 teacher;
    test: shows what other arithmetic changes.
    """

    batches: ImageBatches
    rows: int
    epochs: int
    views: Mapping[int, ImageView]
    train: Images
    test: Images

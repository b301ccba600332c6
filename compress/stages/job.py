"""A planned step, as a stage's `run` receives it, and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.recipe.schema import Recipe


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: `values` are reproducible bit by bit, `measured` holds every time."""

    values: dict[str, Any]
    measured: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepJob:
    """One planned step, as its stage's `run` receives it.

    `fields` is what the step's folder stands for, see `RunDirectory.begin`; with `fresh`, nothing
    that was done earlier may be taken back.
    """

    name: str
    folder: Path
    run_folder: Path
    arguments: Mapping[str, Any]
    device: torch.device
    workers: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Job(StepJob):
    """A step of a recipe.

    `lockstep_values` is what jobs that are trained in lockstep have in common; None: the job
    is trained alone.
    """

    recipe: Recipe
    recipe_fingerprint: str
    lockstep_values: dict[Any, Any] | None = None

"""A planned piece of work, as a stage's `run` receives it, and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.recipe.schema import Recipe
from compress.storage.integrity import sha256_file as sha256_file


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: `values` are reproducible bit by bit, `measured` holds every time."""

    values: dict[str, Any]
    measured: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One planned piece of work, as a stage's `run` receives it."""

    name: str
    folder: Path
    run_folder: Path
    recipe: Recipe
    arguments: Mapping[str, Any]
    device: torch.device
    workers: int
    recipe_fingerprint: str
    # What jobs that are trained side by side have in common; None: the job is trained alone.
    companions: dict[Any, Any] | None = None
    # What the folder was begun for, see `RunDirectory.begin`.
    fields: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False  # nothing that was done earlier may be taken

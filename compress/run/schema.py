"""The JSON schema of a recipe, which `--schema` prints."""

from collections.abc import Callable, Mapping
from typing import Any

from compress import models
from compress.data import DATASETS
from compress.engine.optimization import SCHEDULES
from compress.methods import METHODS
from compress.recipe import signatures
from compress.recipe.schema import Recipe
from compress.run.stages import StageTable
from compress.trackers import TRACKERS


def schema(stages: StageTable) -> dict[str, Any]:
    """JSON schema of a recipe, with the arguments of every named part."""
    registries: dict[str, tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]] = {
        "data": (DATASETS, ("image_size",)),
        "method": (METHODS, ()),
        "schedule": (SCHEDULES, ()),
        "tracker": (TRACKERS, ()),
        "model": (models.MODELS, ("num_classes",)),
    }
    parts = {
        kind: {name: signatures.schema(f, supplied=supplied) for name, f in registry.items()}
        for kind, (registry, supplied) in registries.items()
    }
    parts["transfer"] = stages.load("transfer").schema()
    return {**Recipe.model_json_schema(), "named_parts": parts}

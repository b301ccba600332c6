"""The recipes that come with the package."""

from collections.abc import Mapping
from pathlib import Path


def packaged_recipes() -> Mapping[str, Path]:
    """Path of each recipe by its name below `pipelines/`, without `.yaml`."""
    root = Path(__file__).parents[2] / "pipelines"
    files = sorted(root.rglob("*.yaml"))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}

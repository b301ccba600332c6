"""The recipes that come with the package."""

from collections.abc import Mapping
from pathlib import Path

from compress.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# A wheel has them inside the package; its own folder of that name means a source tree.
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parent / "pipelines")


def packaged_recipes() -> Mapping[str, Path]:
    """Path of each recipe by its name below `pipelines/`, without `.yaml`; tables are among them.

    Raises:
        UserError: the installation has lost them.
    """
    for root in _PLACES:
        files = sorted(root.rglob("*.yaml"))
        if files:
            return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}
    raise UserError(f"no recipes came with {_PACKAGE}; install compress again")

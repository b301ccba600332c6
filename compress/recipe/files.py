"""Reading recipes: YAML file + `--set` -> plain values, and a run's resolved recipe."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.recipe.schema import Recipe, check_shape
from compress.recipe.yaml_values import LARGEST_FILE, parse_yaml
from compress.text import short_repr

__all__ = ["apply_override", "load_resolved", "parse_yaml", "read_yaml"]

_MOST_KEYS = 50  # of a --set path


def read_yaml(
    path: Path, what: str = "a recipe", keys: Iterable[str] = tuple(Recipe.model_fields)
) -> dict[str, Any]:
    """Read a recipe file (or another of `keys`) as it stands, without checking its content."""
    raw = parse_yaml(_read_text(path, what), str(path))
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        raise UserError(f"{path} is {kind}; {what} is a mapping with {', '.join(keys)}")
    return raw


def _read_text(path: Path, what: str) -> str:
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; give the file of {what}")
    if not path.exists():
        raise UserError(f"{what.removeprefix('a ')} '{path}' not found (looked in {Path.cwd()})")
    if not path.is_file():  # reading a pipe would wait
        raise UserError(f"'{path}' is no ordinary file; {what} is a YAML file")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes; {what} is a short YAML file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8; {what} is YAML") from None


def add_set_option(parser: argparse.ArgumentParser, *, explanation: str) -> None:
    """Add `--set`, whose values `with_overrides` applies."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help=f"{explanation}; may be repeated",
    )


def with_overrides(values: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Apply each `--set` of a command line to plain values, in place.

    Raises:
        UserError: an assignment cannot be read, or leads into a value that has no parts.
    """
    for assignment in options.overrides:
        apply_override(values, assignment)
    return values


def apply_override(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `--set dotted.path=value`; the value is read as YAML."""
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise UserError(f"--set {assignment}: expected dotted.path=value, as in data.classes=10")
    keys = path.split(".")
    if len(keys) > _MOST_KEYS:
        raise UserError(f"--set {path}: {len(keys)} keys; a recipe is not that deep")
    place: Any = raw
    for depth, key in enumerate(keys[:-1]):
        here = ".".join(keys[: depth + 1])
        at: Any = _index(place, key, here) if isinstance(place, list) else key
        held = place[at] if isinstance(place, list) else place.get(at)
        if held is None:
            place[at] = {}
        elif isinstance(held, str):  # the short form of a named part
            place[at] = {"name": held}
        place = place[at]
        if not isinstance(place, dict | list):
            raise UserError(f"--set {path}: {here} is {short_repr(place)}, which has no parts")
    value = parse_yaml(text, f"--set {path}")
    if isinstance(place, list):
        place[_index(place, keys[-1], path)] = value
    else:
        place[keys[-1]] = value


def _index(place: Sequence[Any], key: str, here: str) -> int:
    # Python refuses to read a number of thousands of digits.
    if not key.isdecimal() or len(key) > len(str(len(place))) or int(key) >= len(place):
        raise UserError(f"--set {here}: expected one of {len(place)} entries from 0, got '{key}'")
    return int(key)


def load_resolved(run_folder: Path) -> Recipe:
    """The resolved recipe of a run directory, every default written out."""
    path = run_folder / "resolved.yaml"
    if not path.is_file():
        raise UserError(f"{run_folder} is no run directory: it has no resolved.yaml")
    recipe, problems = check_shape(read_yaml(path))
    if recipe is None:
        raise UserError(f"{path} was changed by hand: " + "; ".join(problems))
    return recipe

"""`--set KEY.PATH=VALUE`: changes of plain values, as every command takes them."""

import argparse
from collections.abc import Sequence
from typing import Any

from compress.errors import UserError
from compress.recipe.files import parse_yaml


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
            raise UserError(f"--set {path}: {here} is {place!r}, which has no parts")
    value = parse_yaml(text, f"--set {path}")
    if isinstance(place, list):
        place[_index(place, keys[-1], path)] = value
    else:
        place[keys[-1]] = value


def _index(place: Sequence[Any], key: str, here: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise UserError(f"--set {here}: expected one of {len(place)} entries from 0, got '{key}'")
    return int(key)

"""Reading recipes: YAML file + `--set` -> plain values, and a run's resolved recipe.

PyYAML reads `1e-4` as text and lets the last of two equal keys win silently; the loader here does
neither, and takes no tags.
"""

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from compress.errors import UserError
from compress.recipe.schema import Recipe, check_shape


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-4` as a number and refuses duplicate keys and tags."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.Inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise UserError(f"line {line}: key {key!r} is no text; put it in quotes")
        if key in seen:
            raise UserError(f"line {line}: key '{key}' stands twice (first in line {seen[key]})")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    line = node.start_mark.line + 1
    raise UserError(f"line {line}: YAML tag '{node.tag}' is not accepted; write plain values")


def _finite(loader: _Loader, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        line = node.start_mark.line + 1
        raise UserError(f"line {line}: {node.value} is no finite number")
    return value


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:float", _finite)
_Loader.add_constructor(None, _refuse_tag)


def parse_yaml(text: str, origin: str) -> Any:
    """Read YAML text; `origin` names it in the message of a `UserError`."""
    try:
        return yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{origin}, {error}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{origin} is not readable as YAML: {detail}") from None


def read_yaml(
    path: Path, what: str = "a recipe", keys: Iterable[str] = tuple(Recipe.model_fields)
) -> dict[str, Any]:
    """Read a recipe file (or another of `keys`) as it stands, without checking its content."""
    if not path.is_file():
        raise UserError(f"{what.removeprefix('a ')} '{path}' not found (looked in {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; {what} is YAML") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        raise UserError(f"{path} is {kind}; {what} is a mapping with {', '.join(keys)}")
    return {key: _unshared(value) for key, value in raw.items()}


def _unshared(value: Any) -> Any:
    """A copy in which no part is the same object as another: an alias is read as a value.

    (copy.deepcopy keeps sharing, so `--set` at one place would also change the other.)
    """
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


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


def load_resolved(run_folder: Path) -> Recipe:
    """The resolved recipe of a run directory, every default written out."""
    path = run_folder / "resolved.yaml"
    if not path.is_file():
        raise UserError(f"{run_folder} is no run directory: it has no resolved.yaml")
    recipe, problems = check_shape(read_yaml(path))
    if recipe is None:
        raise UserError(f"{path} was changed by hand: " + "; ".join(problems))
    return recipe

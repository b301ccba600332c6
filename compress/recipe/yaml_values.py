"""YAML text -> plain values: mappings with text keys, lists, text, numbers, booleans and null.

PyYAML reads `1e-4` as text, dates as objects, lets the last of two equal keys win silently, and
follows aliases and nesting as far as they go; here none of that happens, and no tag is taken.
"""

import math
import re
from typing import Any

import yaml

from compress.errors import UserError
from compress.text import one_line, short_repr

LARGEST_FILE = 1 << 18  # bytes
_DEEPEST = 50
_MOST_CHARACTERS = 1 << 18  # of what stands there with its aliases written out
_LARGEST_NUMBER = 10**100  # Python refuses to print much larger ones
_NUMBER = re.compile(
    r"^[-+]?([0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
    r"|\.inf|\.Inf|\.nan)$"
)
_TAG = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float")


class _Loader(yaml.SafeLoader):
    """Reads nodes: `1e-4` is a number, a date is text, tags and deep nesting are refused."""

    # Not dates, not `<<` and `=`, which stand for other things in YAML.
    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in _SCALARS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; bounded before PyYAML's own recursion is."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if (tag := getattr(event, "tag", None)) is not None:
            raise _refusal(event, f"YAML tag '{tag}' is not accepted; write plain values")
        if self.depth == _DEEPEST:
            raise _refusal(event, f"nested more than {_DEEPEST} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Text, a number, a boolean or null."""
        try:
            value = self.construct_object(node)
        except ValueError:
            raise _refusal(
                node, f"{short_repr(node.value)} is no number that can be read"
            ) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _refusal(node, f"{short_repr(node.value)} is no finite number")
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise _refusal(node, "a whole number of more than 100 digits")
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise _refusal(
                node, f"{short_repr(value)} holds what is no character (NUL or a surrogate)"
            )
        return value


_Loader.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+0123456789."))


class _Reader:
    """Turns nodes into values; an alias becomes a copy, so that no two places share an object."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.characters = 0

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        """The value of a node.

        Raises:
            UserError: with its line.
        """
        self.characters += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.characters > _MOST_CHARACTERS:
            raise _refusal(
                node, f"with its aliases written out, it has more than {_MOST_CHARACTERS:,} "
                "characters; write what is meant without them"
            )  # fmt: skip
        if depth > _DEEPEST:
            raise _refusal(node, f"with its aliases written out, nested more than {_DEEPEST} deep")
        if isinstance(node, yaml.ScalarNode):
            return self.loader.scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self._mapping(node, depth)

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, depth + 1)
            if not isinstance(key, str):
                raise _refusal(key_node, f"key {short_repr(key)} is no text; put it in quotes")
            if key in lines:
                where = f"stands twice (first in line {lines[key]})"
                raise _refusal(key_node, f"key '{one_line(key)}' {where}")
            lines[key] = _line(key_node)
            values[key] = self.value(value_node, depth + 1)
        return values


def _refusal(place: yaml.Node | yaml.Event, reason: str) -> UserError:
    return UserError(f"line {_line(place)}: {reason}")


def _line(place: yaml.Node | yaml.Event) -> int:
    """Its number in the text, from 1."""
    assert place.start_mark is not None
    return place.start_mark.line + 1


def parse_yaml(text: str, origin: str) -> Any:
    """Read YAML text; `origin` names it in the message of a `UserError`."""
    if len(text) > LARGEST_FILE:
        raise UserError(f"{origin} has more than {LARGEST_FILE:,} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader).value(node)
    except UserError as error:
        raise UserError(f"{origin}, {error}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        detail = one_line(" ".join(str(error).split()))
        raise UserError(f"{origin} is not readable as YAML: {detail}") from None

"""JSON that describes what lies beside it (models, bundles): read and checked in one place.

Such a file may come from anybody, so nothing of it is used before it has the expected shape.
"""

import json
import reprlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.errors import UserError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_MOST_LEVELS = 50


class Open(BaseModel):
    """Values with exactly these types; keys that are not named here are left alone."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class Closed(BaseModel):
    """Values with exactly these types and no other keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def read_described(path: Path, shape: type[BaseModel], format_number: int) -> dict[str, Any]:
    """The content of a JSON file as it stands, once it has the given shape.

    Raises:
        UserError: it is damaged; one sentence names the key, what it holds and what is expected.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or delete its folder") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no mapping); restore it or delete its folder")
    found = content.get("format")
    if type(found) is not int or found != format_number:
        shown = _REPR.repr(found)
        raise UserError(f"{path} has format {shown}; this version reads {format_number}")
    if _levels(content) > _MOST_LEVELS:
        raise UserError(f"{path} is damaged: values in it lie more than {_MOST_LEVELS} deep")
    try:
        shape.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {_sentence(error)}") from None
    return content


def shortened(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    return _REPR.repr(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _levels(content: Any) -> int:
    """How deep lists and mappings are nested."""
    depth, level = 0, [content]
    while level and depth <= _MOST_LEVELS:
        nested = [v for v in level if isinstance(v, dict | list)]
        level = [one for v in nested for one in (v.values() if isinstance(v, dict) else v)]
        depth += bool(nested)
    return depth


def _sentence(error: ValidationError) -> str:
    """The first problem, and how many there are beside it."""
    problems = error.errors()
    missing = sorted(str(p["loc"][0]) for p in problems if _is_missing_at_top(p))
    if missing:
        return f"it lacks {', '.join(missing)}"
    first = problems[0]
    key = shortened(".".join(map(str, first["loc"])))[1:-1] or "its content"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "missing":
        return f"{key} is missing{more}"
    if first["type"] == "extra_forbidden":
        return f"{key} is no key that belongs there{more}"
    if first["type"] == "value_error":
        return f"{first['ctx']['error']}{more}"
    expected = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} is {shortened(first['input'])}, but {expected}{more}"


def _is_missing_at_top(problem: Any) -> bool:
    return problem["type"] == "missing" and len(problem["loc"]) == 1

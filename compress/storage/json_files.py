"""Read JSON files that describe models and bundles.

Such a file may come from anybody, so its schema is checked before any value is used.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.errors import UserError
from compress.text import describe_problem, dotted, short_repr

_MOST_LEVELS = 50


class OpenSchema(BaseModel):
    """Values of exactly these types; other keys are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class ClosedSchema(BaseModel):
    """Values of exactly these types; other keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def read_json_checked(path: Path, schema: type[BaseModel], format_number: int) -> dict[str, Any]:
    """Read a JSON file and check it against a schema; returns its content unchanged.

    Raises:
        UserError: it is damaged; one sentence names the key, what it holds and what is expected.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or delete its folder") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no mapping); restore it or delete its folder")
    if _depth(content) > _MOST_LEVELS:
        raise UserError(f"{path} is damaged: values in it lie more than {_MOST_LEVELS} deep")
    version = content.get("format")
    if type(version) is not int or version != format_number:
        version = short_repr(version)
        raise UserError(f"{path} has format {version}; this version reads {format_number}")
    try:
        schema.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {_sentence(error)}") from None
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _depth(content: Any) -> int:
    """Depth of nested lists and mappings."""
    depth, level = 0, [content]
    while level and depth <= _MOST_LEVELS:
        nested = [v for v in level if isinstance(v, dict | list)]
        level = [one for v in nested for one in (v.values() if isinstance(v, dict) else v)]
        depth += bool(nested)
    return depth


def _sentence(error: ValidationError) -> str:
    """The first problem, and the number of others."""
    problems = error.errors()
    missing = sorted(str(p["loc"][0]) for p in problems if _is_missing_at_top(p))
    if missing:
        return f"it lacks {', '.join(missing)}"
    key = dotted(*problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (f"{key}: " if key else "") + describe_problem(problems[0]) + more


def _is_missing_at_top(problem: Any) -> bool:
    return problem["type"] == "missing" and len(problem["loc"]) == 1

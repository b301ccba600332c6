"""A function's keyword-only arguments as the schema of its part of a recipe.

There is one place for names, types and defaults: the signature. No table is kept in step with it.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from compress.errors import nearest
from compress.recipe.schema import Named
from compress.text import dotted, short_repr

_LARGEST = 2**31 - 1  # that of the libraries below
_MOST_PROBLEMS = 100


def arguments_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Keyword-only arguments: name -> (type, default), `inspect.Parameter.empty` if required.

    Arguments that a `functools.partial` has already given are not among them.
    """
    preset: Mapping[str, Any] = {}
    while isinstance(function, functools.partial):
        preset = {**function.keywords, **preset}
        function = function.func
    target = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(target)
    return {
        p.name: (hints.get(p.name, Any), p.default)
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in preset
    }


def check(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    path: str,
    *,
    supplied: tuple[str, ...] = (),
    beside: Iterable[str] = (),
) -> list[str]:
    """Problems of the arguments `values` of a function, each with its path.

    Args:
        supplied: arguments that the caller fills in itself; a recipe may not give them.
        beside: keys that are accepted beside them, for the message.
    """
    accepted = {k: v for k, v in arguments_of(function).items() if k not in supplied}
    unknown = [name for name in values if name not in accepted]
    names = [*accepted, *beside]
    known = ", ".join(names) or "nothing"
    problems = [
        f"{path}.{dotted(name)}: unknown key; accepted here: {known}{nearest(name, names)}"
        for name in unknown[:_MOST_PROBLEMS]
    ]
    if len(unknown) > _MOST_PROBLEMS:
        problems.append(f"{path}: and {len(unknown) - _MOST_PROBLEMS:,} more unknown keys")
    for name in (name for name in values if name in accepted):
        if detail := _mistake(accepted[name][0], values[name]):
            problems.append(f"{path}.{name}: {detail}, got {short_repr(values[name])}")
    problems += [
        f"{path}.{name}: missing"
        for name, (_, default) in accepted.items()
        if default is inspect.Parameter.empty and name not in values
    ]
    return problems


def _mistake(hint: Any, value: Any) -> str | None:
    try:
        # JSON mode: a list of a recipe may stand for a tuple, but text for no number.
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(item["msg"].lower() for item in error.errors()))
    if any(abs(number) > _LARGEST for number in _whole_numbers(value)):
        return f"whole numbers go up to {_LARGEST}"
    return None


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(part)


def check_named(
    part: Named,
    registry: Mapping[str, Callable[..., Any]],
    path: str,
    *,
    supplied: tuple[str, ...] = (),
) -> list[str]:
    """Problems of a named part: an unknown name, or arguments that its function does not take."""
    if part.name not in registry:
        known = ", ".join(registry)
        return [f"{path}: unknown name '{part.name}'; known: {known}{nearest(part.name, registry)}"]
    beside = [key for key in type(part).model_fields if key != "name"]
    return check(registry[part.name], part.arguments, path, supplied=supplied, beside=beside)


def schema(function: Callable[..., Any], *, supplied: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON schema of a function's keyword-only arguments."""
    properties = {}
    required = []
    for name, (hint, default) in arguments_of(function).items():
        if name in supplied:
            continue
        properties[name] = TypeAdapter(hint).json_schema()
        if default is inspect.Parameter.empty:
            required.append(name)
        else:
            properties[name]["default"] = default
    return {"properties": properties, "required": required}

"""A signature is a schema: names, types, defaults, and what a caller fills in itself."""

from functools import partial

import pytest

from compress.recipe.signatures import check, schema


def function(*, width: int, share: float = 0.5, steps: tuple[int, ...] = (1, 2)) -> None: ...


@pytest.mark.parametrize(
    "given", [{"width": 3}, {"width": 3, "share": 1}, {"width": 3, "steps": [4, 5]}]
)
def test_what_fits_is_accepted(given: dict[str, object]) -> None:
    assert check(function, given, "part") == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "part.width: missing"),
        ({"width": "3"}, "part.width: .*integer.*got '3'"),
        ({"width": 3.5}, "part.width: .*integer"),
        ({"width": True}, "part.width: .*integer"),
        ({"width": 3, "shares": 1}, "part.shares: unknown key; accepted here: .*'share'"),
        ({"width": 3, "steps": [1, "x"]}, "part.steps: .*integer"),
    ],
)
def test_what_does_not_is_named(given: dict[str, object], words: str) -> None:
    import re

    (problem,) = check(function, given, "part")
    assert re.search(words, problem), problem


def test_what_the_caller_supplies_is_neither_asked_for_nor_accepted() -> None:
    assert check(function, {}, "part", supplied=("width",)) == []
    assert check(function, {"width": 1}, "part", supplied=("width",)) != []
    assert check(partial(function, width=1), {}, "part") == []


def test_the_schema_tells_defaults_and_requirements() -> None:
    described = schema(function)
    assert described["required"] == ["width"]
    assert described["properties"]["share"] == {"type": "number", "default": 0.5}

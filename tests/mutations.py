"""Recipes made wrong: one seeded mutation at a time, of every kind that a file can come with."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

_MARK = "put-it-here"
_KEYS = ("", " ", "two words", "<<", "1", "epochs", "\x1b[31m", "\u202e", "a" * 5000, "x.y", "null")
_TYPES: tuple[Any, ...] = (
    None, "", {}, [], True, -1, 0, 3.5, "text", [1], {"a": 1}, {"name": 5}, [[]], ["", None], "kd",
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    10**30, -(10**30), 10**99, 10**200, 2**31, 2**63, 2**64, 10**9, 1e308, -1e308, 1e-320, 10**12,
)  # fmt: skip
_TEXTS = (
    "x" * 100_000, "/" + "y" * 5000, "\x00", "\x1b]0;title\x07", "\u202egnp", "a\nerror: b",
    "\ud800", "[red]", "[/]", "*" * 300, "__main__:x", "no.py:net", "\udcff", "%s%n",
    "../../etc/passwd", "~", "torchvision:", "timm:x", ":", "torchvision:resnet18", "none",
    "\u2028", "\x85", ".", "/dev/zero",
)  # fmt: skip
_RAW = (
    "2020-01-01", "2020-01-01 10:00:00", "!!map [1]", "!!set {a, b}", "!!omap [a: 1]",
    "!!binary aGk=", "!!pairs [a: 1]", "!!python/object:os.system x", "!!python/name:os.system",
    "!x y", "!!str 5", "!!int abc", "!!timestamp 2020-01-01", ".inf", ".nan", "-.inf", "1e400",
    "0b_", "0x" + "f" * 5000, "1" * 5000, "190:20:30", "? [1]\n: 2", "{1: 2}", "{2020-01-01: 1}",
    "{null: 1}", "{[1]: 2}", "*nowhere", "&x [*x]", "&x {k: *x}", "{a: 1, a: 2}", "{<<: {a: 1}}",
    "@", "`", "[", "}", "'", "[" * 200 + "]" * 200, "{a: " * 200 + "1" + "}" * 200, "[" * 20_000,
    "=", "\t", "%", "|", "- - -", "\x1b[2J", "\x07", "\ufeff", "---\n---", "...", "\"\\ud800\"",
    "\"\\0\"", "\"\\e[1m\"", "#", "~", "&a " + "[x]" + "\n", "!!float 1", "!!null x",
    "!!bool maybe", "! 5", "!<tag:x> y", "off",
)  # fmt: skip
_LEVELS = [f"&b{i} [{', '.join([f'*b{i - 1}' if i else 'x'] * 9)}]" for i in range(9)]
_BOMB = f"[{', '.join(_LEVELS)}]"  # nine to the ninth, written out


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from _places(part, (*path, key))


def _holder(recipe: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        recipe = recipe[key]
    return recipe


def _changed(recipe: dict[str, Any], draw: random.Random) -> tuple[str, dict[str, Any], str]:
    """A kind of mutation, the recipe after it, and raw YAML for where the mark stands."""
    path = draw.choice(list(_places(recipe)))
    holder, last = _holder(recipe, path), path[-1]
    kind = draw.choice(list(_KINDS))
    raw = _KINDS[kind](holder, last, draw)
    return kind, recipe, raw


def _delete(holder: Any, last: Any, draw: random.Random) -> str:
    del holder[last]
    return ""


def _put(values: tuple[Any, ...]) -> Callable[[Any, Any, random.Random], str]:
    def put(holder: Any, last: Any, draw: random.Random) -> str:
        holder[last] = copy.deepcopy(draw.choice(values))
        return ""

    return put


def _put_raw(values: tuple[str, ...]) -> Callable[[Any, Any, random.Random], str]:
    def put(holder: Any, last: Any, draw: random.Random) -> str:
        holder[last] = _MARK
        return draw.choice(values)

    return put


def _add(holder: Any, last: Any, draw: random.Random) -> str:
    value = draw.choice((*_TYPES, *_NUMBERS))
    if isinstance(holder, list):
        holder.append(value)
    else:
        holder[draw.choice((*_KEYS, f"{last}s"))] = value
    return ""


def _repeat(holder: Any, last: Any, draw: random.Random) -> str:
    if isinstance(holder, list):
        holder.extend([holder[last]] * draw.choice((1, 300)))
    else:
        holder |= {f"{last}{i}": holder[last] for i in range(draw.choice((1, 300)))}
    return ""


def _move(holder: Any, last: Any, draw: random.Random) -> str:
    holder[last] = {draw.choice(_KEYS): holder[last]}
    return ""


_KINDS: dict[str, Callable[[Any, Any, random.Random], str]] = {
    "delete": _delete,
    "type": _put(_TYPES),
    "number": _put(_NUMBERS),
    "text": _put(_TEXTS),
    "raw": _put_raw(_RAW),
    "bomb": _put_raw((_BOMB,)),
    "key": _add,
    "repeat": _repeat,
    "move": _move,
}


def mutations(recipe: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` times: the kinds of one to three mutations, and the file they make of a recipe."""
    draw = random.Random(seed)
    for _ in range(count):
        content, kinds, raw = copy.deepcopy(recipe), [], ""
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            if not content or raw:
                break
            kind, content, raw = _changed(content, draw)
            kinds.append(kind)
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=draw.random() < 0.3)
        text = text.replace(_MARK, raw)
        encoding = draw.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (90, 4, 3, 3))[0]
        yield (
            "+".join(kinds),
            text.encode(encoding, "surrogatepass" if encoding[0] == "u" else "replace"),
        )

"""Make text from recipes, files and folders safe to print in a terminal, a log or a report.

Only printed text is changed, never a value that is used.
"""

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST_VALUE = 200  # characters of a value that a message repeats
_LONGEST_LINE = 4000  # a list of every known model still fits
# Joiners belong to the spelling of Persian, of Indian scripts, and of some emoji.
_KEPT = frozenset("\n\t\u200c\u200d")


def printable(text: str) -> str:
    """Replace control characters by visible escapes.

    These are escape sequences, carriage returns, marks that change the direction of writing, and
    surrogates, such as undecodable bytes of a file's name. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in text)


def one_line(text: str) -> str:
    """The printable text on one line; the middle of a very long one is left out."""
    return _without_middle(_flat(text), _LONGEST_LINE)


def short_repr(value: Any) -> str:
    """The `repr` of a value for a message, on one line; the middle of a long one is left out."""
    return _without_middle(_flat(repr(value)), _LONGEST_VALUE)


def dotted(*keys: int | str) -> str:
    """The path of a key in a message; a key that is not one word stands in quotes."""
    words = (str(key) if isinstance(key, int) or is_word(key) else short_repr(key) for key in keys)
    return ".".join(words)


def describe_problem(problem: "ErrorDetails") -> str:
    """One problem that pydantic reports, and the value; without its place."""
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, got {short_repr(problem['input'])}"


def is_word(key: str) -> bool:
    """True if a key of a recipe can stand in a message without quotes."""
    return len(key) <= 100 and re.fullmatch(r"[\w.+-]+", key) is not None


def is_line(text: str) -> bool:
    """True if a text is one line, not empty, that a text file can hold."""
    return text.splitlines() == [text] and not any("\ud800" <= c <= "\udfff" for c in text)


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or letter in _KEPT or unicodedata.category(letter) == "Zs"


def _flat(text: str) -> str:
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _without_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... {text[-half:]} ({len(text):,} characters)"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `4 days 3 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"

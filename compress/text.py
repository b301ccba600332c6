"""Text from recipes, files and folders, made fit to be shown: in a terminal, a log, a report.

Values stay as they are given; what is made printable is only ever what somebody reads.
"""

import re
import unicodedata
from typing import Any

_LONGEST_VALUE = 200  # characters of a value that a message repeats
_LONGEST_LINE = 4000  # a list of every known model still fits
# Joiners belong to the spelling of Persian, of Indian scripts, and of some emoji.
_KEPT = frozenset("\n\t\u200c\u200d")


def printable(text: str) -> str:
    """The text with everything that controls a terminal or a page as a visible escape.

    These are escape sequences, carriage returns, marks that turn the direction of writing, and what
    is no character at all, such as undecodable bytes of a file's name. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in text)


def one_line(text: str) -> str:
    """The text as `printable` gives it, on one line, its middle left out where it is very long."""
    return _without_middle(_flat(text), _LONGEST_LINE)


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, on one line, and not whole where it is long."""
    return _without_middle(_flat(repr(value)), _LONGEST_VALUE)


def dotted(*keys: int | str) -> str:
    """The path of a key in a message; a key that is no plain word stands in quotes."""
    words = (str(key) if isinstance(key, int) or is_word(key) else shown(key) for key in keys)
    return ".".join(words)


def is_word(key: str) -> bool:
    """Whether a key of a recipe can stand in a message as it is."""
    return len(key) <= 100 and re.fullmatch(r"[\w.+-]+", key) is not None


def is_line(text: str) -> bool:
    """Whether a text is one line that a text file can hold, and not empty."""
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

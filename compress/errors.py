"""The one exception for a user's mistakes, and hints for its message."""

import difflib
from collections.abc import Iterable

_LONGEST_NAME = 100  # of one that may be misspelt; comparing takes time


class UserError(Exception):
    """A mistake in what the user gave: one message, no traceback, exit code 2.

    The message says what was given, what was expected and what to do.
    """


class UntrustedCode(UserError):
    """A model file names code that the user has not trusted yet."""


def in_one_line(error: BaseException) -> str:
    """The message of another library's error on one line; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    if len(name) > _LONGEST_NAME:
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match and match[0] != name else ""

"""The one exception that speaks to the user, and the hint in its messages."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one message, no traceback, exit code 2.

    The message says what was given, what was expected and what to do.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match and match[0] != name else ""

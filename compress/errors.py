"""The one exception that speaks to the user, and the hint in its messages."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in what the user gave: one message, no traceback, exit code 2.

    The message says what was given, what was expected and what to do.
    """


def _to_stderr(message: str) -> None:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)


def exit_code(command: Callable[[], int], tell: Callable[[str], None] = _to_stderr) -> int:
    """Run a command; what its user did wrong is told in words, with no traceback.

    Args:
        tell: shows the message, by default each of its lines on stderr.

    Returns:
        The command's own code; 2 after a user's mistake or where a file cannot be read or
        written; 130 when interrupted.
    """
    try:
        return command()
    except UserError as error:
        tell(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 2


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match and match[0] != name else ""

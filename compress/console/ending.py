"""The end of a command: its exit code, its one message, what SIGTERM does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from compress.console.terminal import print_error as print_in_terminal
from compress.errors import UserError
from compress.text import one_line

_REPEATS = 5.0  # seconds in which a further SIGTERM says nothing new
_place: ContextVar[str] = ContextVar("place", default="")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as of a scheduler or `timeout`, ends a command as Ctrl-C does; exit code 143."""


def _to_stderr(message: str) -> None:
    for line in message.split("\n"):
        print(f"error: {one_line(line)}", file=sys.stderr)


def _stop_to_stderr(sentence: str) -> None:
    print(one_line(sentence), file=sys.stderr)


def exit_code(
    command: Callable[[], int],
    show: Callable[[str], None] = _to_stderr,
    show_stop: Callable[[str], None] = _stop_to_stderr,
) -> int:
    """Run a command; what its user did wrong is told in words, with no traceback.

    Args:
        show: shows the message, by default each of its lines on stderr.
        show_stop: shows that the command was stopped, by default on stderr.

    Returns:
        The command's own code; 2 after a user's mistake or where a file cannot be read or
        written; 130 when interrupted, 143 after SIGTERM.
    """
    try:
        with _stopped_by_sigterm():
            return command()
    except UserError as error:
        show(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        show(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as stop:
        show_stop(stop_sentence(stop))
        return 143 if isinstance(stop, Terminated) else 130
    return 2


def stop_sentence(stop: KeyboardInterrupt) -> str:
    """`interrupted`, or `stopped by SIGTERM in distill/kd`."""
    return str(stop) or "interrupted"


@contextmanager
def doing(place: str) -> Iterator[None]:
    """Name the work inside the block, for the message of a command that is stopped there."""
    before = _place.set(place)
    try:
        yield
    finally:
        _place.reset(before)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises `Terminated`.

    `timeout` and schedulers send it twice: for some seconds no other does. A later one counts
    again, since what is raised while Python runs a finaliser, as of a data loader, is lost.

    Whatever fails after a SIGTERM is its consequence. A scheduler's goes to data loaders' and other
    training processes as well, and those that are left miss them with errors of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be interrupted
        return
    process = os.getpid()
    stops: list[tuple[float, Terminated]] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != process:  # a data loader's process inherits the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not stops or now - stops[-1][0] > _REPEATS:
            # From here on it is no news that a data loader's process has died.
            signal.signal(signal.SIGCHLD, _do_nothing)
            place = _place.get()
            terminated = Terminated("stopped by SIGTERM" + (f" in {place}" if place else ""))
            stops.append((now, terminated))
            raise terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception:
        if stops:
            raise stops[-1][1] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler; of a signal that waits to be handled, Python reports SIG_DFL as a race."""


def report_mistake(read: Callable[[], object]) -> int:
    """Read a command line early; 0, or the exit code of a mistake in it, which is then reported.

    What torchrun started does not: only processes that have met can report a mistake once.
    """

    def run() -> int:
        read()
        return 0

    return 0 if "LOCAL_RANK" in os.environ else exit_code(run, print_in_terminal)

"""Messages (also in `log.txt`) and progress bars while a recipe runs.

Of several processes only the first prints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compress.console.terminal import console
from compress.distributed.collectives import is_main_process
from compress.text import printable

__all__ = [
    "Advance",
    "bar",
    "console",
    "log",
    "log_to",
    "note",
    "shows_bars",
    "silently",
    "without_bars",
]

# Of the context, since several runs may take turns in one process.
_log_file: ContextVar[Path | None] = ContextVar("log_file", default=None)
_bars: ContextVar[bool] = ContextVar("bars", default=True)


class Advance(Protocol):
    """Moves a progress bar on.

    `note` is a short text behind the bar, such as a loss, `place` one before it, such as an epoch;
    an empty one keeps what stands there.
    """

    def __call__(self, steps: int = 1, note: str = "", place: str = "") -> None: ...


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Inside the block every message is also appended to `path`, with its time."""
    before = _log_file.set(path)
    try:
        yield
    finally:
        _log_file.reset(before)


def without_bars() -> None:
    """Show no more bars in this context, where several at once would overwrite each other."""
    _bars.set(False)


@contextmanager
def silently() -> Iterator[None]:
    """Print nothing inside the block, bars neither."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


def shows_bars() -> bool:
    """True if a progress bar would be visible; otherwise a line is printed per epoch."""
    return console.is_terminal and _bars.get()


def log(message: str) -> None:
    """Print one message."""
    if is_main_process():
        console.print(message, soft_wrap=True)
        note(message)


def note(message: str) -> None:
    """Append one message to `log.txt` alone, from any process."""
    path = _log_file.get()
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')}  {printable(message)}\n")


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A progress bar over `total` steps that vanishes when the block ends."""
    columns = (
        TextColumn("{task.description}{task.fields[place]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    disable = not (shows_bars() and is_main_process())
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(description, total=total, note="", place="")

        def advance(steps: int = 1, note: str = "", place: str = "") -> None:
            fields = {"note": note} if note else {}
            fields |= {"place": f" {place}"} if place else {}
            progress.update(task, advance=steps, **fields)  # type: ignore[arg-type]

        yield advance

"""What the user sees while a recipe runs: messages (also in `log.txt`) and progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
_log_file: Path | None = None


class Advance(Protocol):
    """Moves a progress bar on; `note` is a short text behind it, such as a loss."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Inside the block every message is also appended to `path`, with its time."""
    global _log_file
    before, _log_file = _log_file, path
    try:
        yield
    finally:
        _log_file = before


def log(message: str) -> None:
    """Print one message; plain text, so brackets in it are never read as markup."""
    console.print(message, markup=False, soft_wrap=True)
    note(message)


def note(message: str) -> None:
    """Append one message to `log.txt` alone."""
    if _log_file is not None:
        with _log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')}  {message}\n")


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A progress bar over `total` steps that vanishes when the block ends."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            # An empty note keeps the one that stands.
            fields = {"note": note} if note else {}
            progress.update(task, advance=steps, **fields)  # type: ignore[arg-type]

        yield advance

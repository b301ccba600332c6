"""A command line as a process, and what it came to: how a sweep runs what it has to run."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from filelock import FileLock, Timeout

from compress.console.messages import log

_PAUSE = 0.2  # seconds between two looks at a process
_PATIENCE = 20.0  # seconds that a process has to end after SIGTERM


@dataclass(frozen=True)
class Command:
    """`python ARGUMENTS` in the working directory, and the run directories that it writes."""

    arguments: tuple[str, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Ended:
    """The end of a command: its exit code (minus a signal's number) and all that it printed."""

    code: int
    output: str


# Runs a command and waits for it. Once the event is set the command is ended, and
# KeyboardInterrupt raised.
Runner = Callable[[Command, Event], Ended]


def run_process(command: Command, stopped: Event, *, threads: int) -> Ended:
    """Run a command in a process of this machine, with so many threads unless the user has said.

    Raises:
        KeyboardInterrupt: `stopped` was set; the process has ended.
    """
    _wait_for_others(command, stopped)
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, *command.arguments],
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while child.poll() is None:
                _pause(stopped)
        finally:
            _end(child)
        output.seek(0)
        return Ended(child.returncode, output.read().decode("utf-8", "replace"))


def _pause(stopped: Event) -> None:
    if stopped.wait(_PAUSE):
        raise KeyboardInterrupt


def _wait_for_others(command: Command, stopped: Event) -> None:
    """A run that a killed sweep left behind goes on by itself: what it does is not lost."""
    for folder in command.folders:
        lock = FileLock(folder / ".lock")  # that of `RunDirectory.open`
        was_told = not folder.is_dir()
        while folder.is_dir():
            try:
                with lock.acquire(timeout=0):
                    break
            except Timeout:
                if not was_told:
                    log(f"{folder}: another process is at it; waits for that one to end")
                was_told = True
                _pause(stopped)


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where the wait is interrupted: Ray cancels again what does not end soon
        if child.poll() is None:
            child.kill()
            child.wait()


def problem(ended: Ended, log_file: Path, recipe: Path | None = None) -> str | None:
    """Why a command failed, as one sentence; None where it did not.

    Of a command that runs several recipes, why this one failed.
    """
    if ended.code == 0:
        return None
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"ended by {name} (out of memory?); {log_file} has what it did"
    mark = f"error: {recipe}: " if recipe else "error: "
    start = ended.output.rfind(mark)
    if ended.code == 2 and start >= 0:
        message = ended.output[start + len(mark) :]
        return " ".join((message.partition("\nerror: ")[0] if recipe else message).split())
    lines = ended.output.strip().splitlines() or ["it said nothing"]
    return f"exit code {ended.code}: {lines[-1].strip()}; {log_file} has what it did"

"""Runs of a sweep in processes that start at once."""

import itertools
from pathlib import Path
from threading import Event

import pytest

from compress.sweep import execution
from compress.sweep.processes import Command, Ended
from tests import processes


@pytest.fixture
def forked_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's runs are forked, from a process that has imported torch, for a test's time."""
    numbers = itertools.count()

    def run_fork(command: Command, _stopped: Event, *, threads: int) -> Ended:
        output = tmp_path / f"output-{next(numbers)}.txt"
        environment = {"OMP_NUM_THREADS": str(threads)}
        return Ended(*processes.run(command.arguments, output, environment))

    monkeypatch.setattr(execution, "run_process", run_fork)

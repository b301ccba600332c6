"""Processes of a sweep: run to their end, ended when it is, and never two at one directory."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from compress.run.directory import RunDirectory
from compress.sweep import processes
from compress.sweep.processes import Command, Ended, problem, run_process
from tests.waiting import HANG, wait_until

DONE = Ended(0, "")


def test_a_run_ended_by_a_signal_says_which() -> None:
    log = Path("log.txt")
    assert "SIGKILL" in (problem(Ended(-9, "epoch 1"), log) or "")
    assert problem(Ended(2, "loading\nerror: no such\n folder\n"), log) == "no such folder"
    assert problem(DONE, log) is None


def test_a_command_is_run_to_its_end(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        ended = run_process(Command(("-c", code), (tmp_path / "run",)), Event(), threads=7)
    assert ended == Ended(3, "7\n")
    assert not (tmp_path / "run").exists(), "that is the run's own business"


def endless(file: Path) -> Command:
    """Writes its process id to a file and waits."""
    code = f"import os, signal; open({str(file)!r}, 'w').write(str(os.getpid())); signal.pause()"
    return Command(("-c", code), ())


def pid_in(file: Path) -> int:
    """What `endless` wrote, as soon as it did."""
    wait_until(lambda: file.exists() and file.read_text(), "the process's start")
    return int(file.read_text())


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stopped_command_takes_its_process_with_it(tmp_path: Path) -> None:
    stopped = Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_process, endless(tmp_path / "pid"), stopped, threads=1)
        pid = pid_in(tmp_path / "pid")
        os.kill(pid, 0)
        stopped.set()
        with pytest.raises(KeyboardInterrupt):
            future.result(HANG)
    assert not is_alive(pid)


def test_a_run_that_an_ended_sweep_left_behind_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(processes, "log", said.append)
    folder = tmp_path / "run"
    command, stopped = Command(("-c", ""), (folder,)), Event()
    with ThreadPoolExecutor(2) as pool:
        with RunDirectory(folder, "run").open():
            future = pool.submit(run_process, command, Event(), threads=1)
            given_up = pool.submit(run_process, command, stopped, threads=1)
            wait_until(lambda: len(said) == 2, "two that wait")
            assert not future.done()
            stopped.set()
            with pytest.raises(KeyboardInterrupt):
                given_up.result(HANG)
        assert future.result(HANG) == DONE
    assert all("another process is at it" in message for message in said)
    assert len(said) == 2

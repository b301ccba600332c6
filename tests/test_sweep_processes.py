"""Processes of a sweep: run to their end, ended when it is, and never two at one directory."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from compress.run.directory import RunDirectory
from compress.sweep.processes import Command, Ended, problem, run_process

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
    code = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    return Command(("-c", code), ())


def pid_in(file: Path) -> int:
    """What `endless` wrote, as soon as it did."""
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until, "the process did not start"
        time.sleep(0.05)
    return int(file.read_text())


def test_a_stopped_command_takes_its_process_with_it(tmp_path: Path) -> None:
    stopped = Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_process, endless(tmp_path / "pid"), stopped, threads=1)
        pid = pid_in(tmp_path / "pid")
        os.kill(pid, 0)
        stopped.set()
        with pytest.raises(KeyboardInterrupt):
            future.result(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_that_an_ended_sweep_left_behind_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command, stopped = Command(("-c", ""), (folder,)), Event()
    with ThreadPoolExecutor(2) as pool:
        with RunDirectory(folder, "run").open():
            future = pool.submit(run_process, command, Event(), threads=1)
            given_up = pool.submit(run_process, command, stopped, threads=1)
            time.sleep(0.5)
            assert not future.done()
            stopped.set()
            with pytest.raises(KeyboardInterrupt):
                given_up.result(timeout=30)
        assert future.result(timeout=30) == DONE
    assert capsys.readouterr().out.count("another process is at it") == 2

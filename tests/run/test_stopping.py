"""SIGTERM ends a command as Ctrl-C does: in words, with nothing lost, its processes with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from compress.console.ending import Terminated, doing, exit_code
from compress.errors import UserError
from compress.sweep import command
from compress.sweep.runs import SweepRuns
from tests.processes import VARIABLES, start
from tests.run.test_pipeline import TINY
from tests.sweep.test_processes import endless, pid_in
from tests.sweep.test_sweep import small
from tests.waiting import HANG, wait_until

ROOT = Path(__file__).parents[2]
ENDLESS = {"model": "resnet8", "train": {"epochs": 3000, "lr": 0.05}}


def _send(number: int) -> None:
    """To the main thread: it handles the signal, and another that gets it would not wake it."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


def _sigterm() -> None:
    _send(signal.SIGTERM)


def _end(command: Callable[[], int]) -> tuple[int, list[str]]:
    """The exit code of a command and the sentences in which it reported its stop."""
    sentences: list[str] = []
    return exit_code(command, show_stop=sentences.append), sentences


def test_the_place_is_told_and_what_was_before_holds_again() -> None:
    def command() -> int:
        with doing("the kitchen"):
            _sigterm()
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    assert _end(command) == (143, ["stopped by SIGTERM in the kitchen"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_data_loader_may_end_in_the_very_moment_of_a_sigterm() -> None:
    """Python reports a signal whose handler is gone; here that is an error."""

    def command() -> int:
        both = {signal.SIGTERM, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        try:
            for number in both:
                _send(number)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        return 0

    before = signal.signal(signal.SIGCHLD, lambda *_: None)  # as data loaders have one
    try:
        assert _end(command)[0] == 143
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_second_sigterm_does_not_disturb_the_end() -> None:
    ended = []

    def command() -> int:
        try:
            _sigterm()
        finally:
            _sigterm()
            ended.append("whole")
        return 0

    assert _end(command) == (143, ["stopped by SIGTERM"])
    assert ended == ["whole"]


def test_a_sigterm_that_was_lost_in_a_finaliser_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[type[BaseException]] = []
    monkeypatch.setattr("compress.console.ending._REPEATS", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_type))

    class Loses:
        def __del__(self) -> None:
            _sigterm()

    def command() -> int:
        Loses()
        time.sleep(0.1)
        _sigterm()
        return 0

    assert _end(command) == (143, ["stopped by SIGTERM"])
    assert lost == [Terminated]


@pytest.mark.parametrize("error", [RuntimeError("a worker is gone"), UserError("no data")])
def test_what_fails_because_of_sigterm_is_no_error(error: Exception) -> None:
    def command() -> int:
        try:
            _sigterm()
        finally:
            raise error

    assert _end(command) == (143, ["stopped by SIGTERM"])


def test_beside_the_main_thread_sigterm_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    during: list[Any] = []

    def command() -> int:
        during.append(signal.getsignal(signal.SIGTERM))
        return 0

    thread = threading.Thread(target=exit_code, args=(command,))
    thread.start()
    thread.join()
    assert during == [before]


def test_a_fork_dies_of_sigterm_itself() -> None:
    code = (
        "import os, signal\n"
        "from compress.console.ending import exit_code\n"
        "def command():\n"
        "    here, there = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(there, b'up')\n"
        "        signal.pause()\n"
        "        os._exit(0)\n"
        "    os.read(here, 2)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    return 7 if os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM else 1\n"
        "raise SystemExit(exit_code(command))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (7, "")


def _wait_for(*files: Path) -> None:
    wait_until(lambda: all(file.is_file() for file in files), f"{files}")


def _as_one_line(printed: str) -> str:
    assert "Traceback" not in printed.partition("torch/distributed")[0], printed
    return " ".join(printed.split())


def _folder_of_images(root: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 40), ("val", 8)):
        for name, lightest in (("cat", 100), ("dog", 256)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (32, 32, 3)
                pixels = torch.randint(lightest, size, generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return {"name": "image_folder", "root": str(root), "image_size": 32}


def test_a_run_with_data_loaders_ends_with_its_group_and_goes_on(tmp_path: Path) -> None:
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "run"
    data = _folder_of_images(tmp_path / "images")
    recipe.write_text(yaml.safe_dump({**TINY, "data": data, "teacher": ENDLESS}))
    options = ("--out", str(out), "--until", "teacher", "--workers", "2")
    arguments = ["-m", "compress.pipeline", str(recipe), *options]
    with start(arguments, tmp_path / "first.txt") as command:
        _wait_for(out / "teacher/0/metrics.jsonl")
        # As `timeout` does: the process, then its group, in which it is as well.
        command.signal(signal.SIGTERM)
        command.signal(signal.SIGTERM, group=True)
        exit_code, printed = command.wait()
    # The second may come when Python has put its things away.
    assert exit_code in (143, -signal.SIGTERM)
    sentence = "stopped by SIGTERM in teacher; run the same command again"
    assert _as_one_line(printed).count(sentence) == 1
    assert "stopped by SIGTERM in teacher" in (out / "log.txt").read_text()
    assert not (out / "teacher/result.json").exists()
    with start(arguments, tmp_path / "second.txt") as command:
        wait_until(lambda: "continues after epoch" in command.output.read_text(), "the second run")
        command.signal(signal.SIGTERM, group=True)
        command.wait()


def test_a_sweep_takes_its_runs_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = small(paper={})
    raw["teachers"] = {"big": {"model": "resnet14"}, "huge": {"model": "resnet20"}}
    raw["pairs"] = [{"teacher": name, "student": "thin"} for name in raw["teachers"]]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw))
    files = [tmp_path / name for name in raw["teachers"]]
    monkeypatch.setattr(
        SweepRuns, "_command", lambda _, unit: endless(tmp_path / unit[0].folder.name)
    )
    pids: list[int] = []

    def stop() -> None:
        try:
            pids.extend(pid_in(file) for file in files)
        finally:
            _sigterm()

    thread = threading.Thread(target=stop)
    thread.start()
    options = ["--out", str(tmp_path / "out"), "--jobs", "2"]
    assert command.main([str(tmp_path / "small.yaml"), *options]) == 143
    thread.join()
    printed = capsys.readouterr().out
    assert printed.count("stopped by SIGTERM; run the same command again") == 1
    assert printed.count(": stopped after") == len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_of_torchrun_end_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "teacher": ENDLESS}))
    code = tmp_path / "noted.py"
    code.write_text(
        "import os, pathlib\n"
        "from compress import pipeline\n"
        "code = pipeline.main()\n"
        "(pathlib.Path(__file__).parent / os.environ['RANK']).write_text(str(code))\n"
    )
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", str(code))
    out = tmp_path / "run"
    options = ("--out", str(out), "--until", "teacher", "--workers", "0", "--device", "cpu")
    torchrun = subprocess.Popen(
        [sys.executable, *launcher, str(tmp_path / "tiny.yaml"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **VARIABLES, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    _wait_for(out / "teacher/0/metrics.jsonl")
    torchrun.send_signal(signal.SIGTERM)
    printed = _as_one_line(torchrun.communicate(timeout=HANG)[0])
    assert printed.count("stopped by SIGTERM in teacher; run the same command again") == 1
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["143", "143"]

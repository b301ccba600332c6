"""Commands in processes that start at once: importing torch takes a new one seconds.

They are forked from a server process that has imported what they need and done nothing else.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.waiting import HANG

_CONTEXT = multiprocessing.get_context("forkserver")
# Those of `compress` are imported by each process, under its own environment.
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.run", "torchvision.transforms.v2", "sklearn.datasets"]
)
# Of every process here: one thread, and several meet on this machine.
VARIABLES = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class Running:
    """A command that was started, and the file of what it prints."""

    process: ForkServerProcess
    output: Path

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to it and every process that it started."""
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self) -> tuple[int, str]:
        """Its exit code (minus a signal's number), and all that it printed."""
        self.process.join(HANG)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode, self.output.read_text(encoding="utf-8")


@contextmanager
def start(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Start `python ARGUMENTS` (a file, `-m MODULE` or `-c CODE`) in a process group of its own.

    Nothing of it is left after the block.
    """
    output.write_bytes(b"")
    values = ([*arguments], _setting(output, environment))
    process = _CONTEXT.Process(target=_run_python, args=values)
    process.start()
    try:
        yield Running(process, output)
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def run(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `python ARGUMENTS` to its end: the exit code, and all that it printed."""
    with start(arguments, output, environment) as running:
        return running.wait()


def torchrun(
    processes: int,
    arguments: Sequence[str],
    output: Path,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run `torchrun --nproc-per-node PROCESSES FILE ...`, with forks instead of new processes.

    Returns:
        The exit code of the process that failed first (0 where none did), and all that they
        printed.
    """
    output.write_bytes(b"")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(config, _run_rank)([*arguments], _setting(output, environment))
        code = 0
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = failure.exitcode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, output.read_text(encoding="utf-8")


def on_two_ranks(results: Callable[[int, Path], dict[str, Any]], folder: Path) -> list[Any]:
    """The results of a module's function in each of two processes that exchange by gloo.

    It is called with its rank and the folder; one of the two is this process.
    """
    other = _CONTEXT.Process(target=_run_rank_of_two, args=(results, 1, folder))
    other.start()
    _run_rank_of_two(results, 0, folder)
    other.join(HANG)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


Setting = tuple[str, dict[str, str], str]  # a file for what is printed, variables, a folder


def _setting(output: Path, environment: Mapping[str, str] | None) -> Setting:
    return str(output), {**os.environ, **VARIABLES, **(environment or {})}, os.getcwd()


def _enter(setting: Setting) -> None:
    """Make this process one that was started on its own."""
    output, variables, folder = setting
    os.setsid()
    os.chdir(folder)
    os.environ.update(variables)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run_python(arguments: list[str], setting: Setting) -> None:
    _enter(setting)
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


def _run_rank_of_two(
    results: Callable[[int, Path], dict[str, Any]], rank: int, folder: Path
) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=HANG),
        )
        try:
            torch.save(results(rank, folder), folder / f"{rank}.pt")
        finally:
            distributed.destroy_process_group()


def _run_rank(arguments: list[str], setting: Setting) -> None:
    output, variables, folder = setting
    own = {name: value for name, value in variables.items() if name not in os.environ}
    try:
        _run_python(arguments, (output, own, folder))
    except SystemExit as end:  # torchrun waits for a function's return
        if end.code:
            raise

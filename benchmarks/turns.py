"""Candidates that take turns: each a process of its own that stands still while others are timed.

A line with a number goes in, so many steps are done, a line of JSON with their seconds comes out.
Between its turns a candidate and every process that it started (workers of a data loader) are
stopped by a signal, so whatever they prepare ahead is prepared in their own time.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Steps before the timed ones of a turn: what stood still has left the processor's caches, and the
# system may have taken its memory away.
_SETTLING = 2
Turns = dict[str, list[dict[str, Any]]]  # per candidate, a turn per round


def paced(
    settled: Callable[[], None] = lambda: None,
    beside: Callable[[], dict[str, Any]] = dict,
) -> Iterator[None]:
    """In a candidate: once for each step that is asked for; ends when no more is asked.

    Args:
        settled: waits until the device has done what it was given.
        beside: what else to answer after a turn.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not get between the answers
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            yield
        settled()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "peak_mb": peak_mb(), **beside()}
        print(json.dumps(answer), file=answers, flush=True)


def peak_mb() -> int:
    """The most memory that this process held since it began, in MB: of its GPU, else of Linux."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved()) // 10**6
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 // 10**6


class Candidate:
    """A process that does steps when it is its turn."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # one signal reaches its workers too
                env={**os.environ, **environment},
            )

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it do `steps` steps.

        Returns:
            `seconds` of the wall's clock for all of them; `peak_mb`, memory without its workers;
            what it tells beside that.

        Raises:
            RuntimeError: it ended; with the last line that it wrote.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended; its answer is empty
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.end()
            said = self.log.read_text().strip().splitlines()
            raise RuntimeError(said[-1] if said else "ended without a word")
        self._signal(signal.SIGSTOP)
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        """End it and every process that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them ended
            os.killpg(self._process.pid, number)


def interleaved(
    commands: Mapping[str, Sequence[str]], folder: Path, *, rounds: int, steps: int, threads: int
) -> tuple[Turns, dict[str, str]]:
    """Let every candidate do `steps` steps in each round, in an order that turns round each time.

    Args:
        commands: what starts a candidate; all are started at once, and wait for their turns.
        folder: gets what each writes to stderr.

    Returns:
        The turns of every round but the first, which is not counted; and why others have none.
    """
    running: dict[str, Candidate] = {}
    turns: Turns = {name: [] for name in commands}
    failed: dict[str, str] = {}
    try:
        for name, command in commands.items():
            log, environment = folder / f"{name}.log", {"OMP_NUM_THREADS": str(threads)}
            running[name] = Candidate(name, command, log, environment)
        for number in range(rounds + 1):
            for name in sorted(commands, reverse=number % 2 == 1):
                if name in failed:
                    continue
                try:
                    running[name].turn(_SETTLING)
                    turns[name].append(running[name].turn(steps))
                except RuntimeError as error:
                    failed[name] = str(error)
    finally:
        for candidate in running.values():
            candidate.end()
    return {name: rows[1:] for name, rows in turns.items() if name not in failed}, failed


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and count."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    found = {"median": middle, "quartile_1": low, "quartile_3": high, "n": len(values)}
    return {name: round(value, 4) for name, value in found.items()}

"""The runs of a sweep: which are finished, and training those that are not, each in a process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from compress import pipeline
from compress.artifacts import write_text
from compress.console import log
from compress.errors import UserError
from compress.recipe import check_shape
from compress.reporting.sweep_table import write_table
from compress.sweep_recipe import Cell, Status, Sweep, cells, recipe_of


@dataclass(frozen=True)
class Run:
    """An ordinary run of a recipe; `until` stops it after a stage."""

    name: str
    folder: Path
    recipe: dict[str, Any]
    until: str | None = None

    @property
    def file(self) -> Path:
        """The recipe as a file, beside the run directory."""
        return self.folder.with_name(self.folder.name + ".yaml")

    def is_finished(self) -> bool:
        """Whether its directory holds every result of this very recipe.

        Raises:
            UserError: a result is damaged.
        """
        recipe = check_shape(self.recipe)[0]
        return recipe is not None and pipeline.finished(recipe, self.folder, self.until)


@dataclass
class Plan:
    """A sweep, its directory, what is known of its cells, and how runs are started."""

    sweep: Sweep
    folder: Path
    status: Status
    options: Sequence[str]  # of compress.pipeline
    jobs: int = 1
    children: set["subprocess.Popen[str]"] = field(default_factory=set)

    @property
    def cells(self) -> list[Cell]:
        """The cells that can be trained."""
        return [cell for cell in cells(self.sweep) if cell.name not in self.status.refused]

    def teachers(self) -> list[Run]:
        """A run per teacher that a cell needs."""
        chosen = {cell.pair.teacher: cell for cell in reversed(self.cells)}
        return [
            Run(
                f"teacher {label}",
                self.folder / "teachers" / label,
                recipe_of(self.sweep, cell.pair, [cell.method]),
                until="teacher",
            )
            for label, cell in sorted(chosen.items())
        ]

    def student(self, cell: Cell) -> Run:
        """The run of a cell."""
        teacher = self.folder / "teachers" / cell.pair.teacher / "teacher" / "0"
        recipe = recipe_of(
            self.sweep, cell.pair, [cell.method], str(teacher / "teacher.safetensors")
        )
        return Run(cell.name, self.folder / "cells" / cell.name, recipe)

    def look(self) -> None:
        """Find out what is finished, without running anything."""
        for teacher in self.teachers():
            self._is_finished(teacher)
        for cell in self.cells:
            # A student of an earlier teacher is not this recipe's.
            if f"teacher {cell.pair.teacher}" in self.status.current:
                self._is_finished(self.student(cell))

    def train(self) -> None:
        """Train the teachers, then the cells; the table is written after each of them."""
        with _stopped_by_sigterm():
            self._run_all(self.teachers())
            students = []
            for cell in self.cells:
                if f"teacher {cell.pair.teacher}" in self.status.failed:
                    self.status.failed[cell.name] = f"its teacher {cell.pair.teacher} failed"
                else:
                    students.append(self.student(cell))
            self._run_all(students)

    def _is_finished(self, run: Run) -> bool:
        try:
            is_finished = run.is_finished()
        except UserError as error:
            self.status.failed[run.name] = str(error)
            return False
        if is_finished:
            self.status.current.add(run.name)
        return is_finished

    def _run_all(self, runs: list[Run]) -> None:
        waiting = [r for r in runs if not self._is_finished(r) and r.name not in self.status.failed]
        self._write_table()
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                started: dict[Future[str | None], Run] = {
                    pool.submit(self._run, run): run for run in waiting
                }
                for future in as_completed(started):
                    run, problem = started[future], future.result()
                    if problem is not None:
                        self.status.failed[run.name] = problem
                    else:
                        self._is_finished(run)
                    self._write_table()
            except BaseException:
                # What waits is not started, what runs keeps its last whole epoch.
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(self.children):
                    child.terminate()
                raise

    def _write_table(self) -> None:
        write_table(self.sweep, self.folder, self.status)

    def _run(self, run: Run) -> str | None:
        """Run the recipe in a process of its own; returns its error, if any."""
        run.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(run.file, yaml.safe_dump(run.recipe, sort_keys=False))
        command = [sys.executable, "-m", "compress.pipeline", str(run.file)]
        command += ["--out", str(run.folder), *(["--until", run.until] if run.until else [])]
        # Threads of several processes on the same cores wait for each other, up to fifty times
        # longer.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))}
        log(f"{run.name}: starts; its log is {run.folder}/log.txt")
        start = time.perf_counter()
        child = subprocess.Popen(
            [*command, *self.options],
            env={**threads, **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.children.add(child)
        told, _ = child.communicate()
        self.children.discard(child)
        problem = _problem(child.returncode, told, run)
        seconds = time.perf_counter() - start
        log(f"{run.name}: {f'failed: {problem}' if problem else 'done'} ({seconds:.0f} s)")
        return problem


def _problem(code: int, told: str, run: Run) -> str | None:
    if code == 0:
        return None
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name} (out of memory?); {run.folder}/log.txt has what it did"
    start = told.rfind("error: ")
    if code == 2 and start >= 0:
        return " ".join(told[start + 7 :].split())
    lines = told.strip().splitlines() or ["it said nothing"]
    return f"exit code {code}: {lines[-1].strip()}; {run.folder}/log.txt has what it did"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does: it takes its children with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

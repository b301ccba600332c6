"""The runs of a sweep: which are finished, and training those that are not, each in a process."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from compress import running
from compress.artifacts import write_text
from compress.console import log
from compress.errors import UserError
from compress.recipe import check_shape
from compress.reporting.sweep_table import write_table
from compress.sweep_processes import Command, Runner, problem
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
        return recipe is not None and running.finished(recipe, self.folder, self.until)


@dataclass
class Plan:
    """A sweep, its directory, what is known of its cells, and how runs are started."""

    sweep: Sweep
    folder: Path
    status: Status
    options: Sequence[str]  # of compress.pipeline
    jobs: int = 1

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

    def train(self, runner: Runner) -> None:
        """Train the teachers, then the cells; the table is written after each of them."""
        with _stopped_by_sigterm():
            self._run_all(self.teachers(), runner)
            students = []
            for cell in self.cells:
                if f"teacher {cell.pair.teacher}" in self.status.failed:
                    self.status.failed[cell.name] = f"its teacher {cell.pair.teacher} failed"
                else:
                    students.append(self.student(cell))
            self._run_all(students, runner)

    def _is_finished(self, run: Run) -> bool:
        try:
            is_finished = run.is_finished()
        except UserError as error:
            self.status.failed[run.name] = str(error)
            return False
        if is_finished:
            self.status.current.add(run.name)
        return is_finished

    def _run_all(self, runs: list[Run], runner: Runner) -> None:
        waiting = [r for r in runs if not self._is_finished(r) and r.name not in self.status.failed]
        self._write_table()
        stopped = threading.Event()
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                started: dict[Future[str | None], Run] = {
                    pool.submit(self._run, run, runner, stopped): run for run in waiting
                }
                for future in as_completed(started):
                    run, why = started[future], future.result()
                    if why is not None:
                        self.status.failed[run.name] = why
                    else:
                        self._is_finished(run)
                    self._write_table()
            except BaseException:
                # What waits is not started, what runs keeps its last whole epoch.
                pool.shutdown(wait=False, cancel_futures=True)
                stopped.set()
                raise

    def _write_table(self) -> None:
        write_table(self.sweep, self.folder, self.status)

    def _run(self, run: Run, runner: Runner, stopped: threading.Event) -> str | None:
        """Run the recipe in a process of its own; returns its error, if any."""
        log(f"{run.name}: starts; its log is {run.folder}/log.txt")
        start = time.perf_counter()
        why = problem(runner(self._command(run), stopped), run.folder / "log.txt")
        seconds = time.perf_counter() - start
        log(f"{run.name}: {f'failed: {why}' if why else 'done'} ({seconds:.0f} s)")
        return why

    def _command(self, run: Run) -> Command:
        """What runs it, and its recipe as a file."""
        run.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(run.file, yaml.safe_dump(run.recipe, sort_keys=False))
        until = ["--until", run.until] if run.until else []
        arguments = ["-m", "compress.pipeline", str(run.file), "--out", str(run.folder), *until]
        return Command((*arguments, *self.options), (run.folder,))


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

"""The runs of a sweep: which are finished, and training those that are not, each in a process."""

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress.console.messages import log
from compress.errors import UserError
from compress.pipeline import STAGES
from compress.recipe.schema import check_shape
from compress.run.executor import is_finished
from compress.storage.files import write_text
from compress.sweep.processes import Command, Ended, Runner, problem
from compress.sweep.schema import Cell, Pair, Status, Sweep, SweepMethod, cells, recipe_of
from compress.sweep.table import write_table


@dataclass(frozen=True)
class RecipeRun:
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
        return recipe is not None and is_finished(recipe, STAGES, self.folder, self.until)


@dataclass
class SweepRuns:
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

    def teachers(self) -> list[RecipeRun]:
        """A run per teacher that a cell needs."""
        chosen = {label: cell for cell in reversed(self.cells) for label in cell.pair.teachers}
        return [
            RecipeRun(
                f"teacher {label}",
                self.folder / "teachers" / label,
                self._recipe_of_teacher(label, cell),
                until="teacher",
            )
            for label, cell in sorted(chosen.items())
        ]

    def _recipe_of_teacher(self, label: str, cell: Cell) -> dict[str, Any]:
        """A teacher with the student and method of a cell; one that reads several has its own."""
        alone = isinstance(cell.pair.teacher, str)
        pair = Pair(teacher=label, student=cell.pair.student)
        return recipe_of(self.sweep, pair, [cell.method if alone else SweepMethod(name="none")])

    def _teachers_of(self, cell: Cell) -> list[str]:
        """The names of the runs that give a cell its teachers."""
        return [f"teacher {label}" for label in cell.pair.teachers]

    def student(self, cell: Cell) -> RecipeRun:
        """The run of a cell."""
        files = {
            label: str(self.folder / "teachers" / label / "teacher/0/teacher.safetensors")
            for label in cell.pair.teachers
        }
        recipe = recipe_of(self.sweep, cell.pair, [cell.method], files)
        cache = (recipe.get("engine") or {}).get("cache")
        if cache is not None:  # one for all cells
            cache.setdefault("folder", str(self.folder / "teacher_cache"))
        return RecipeRun(cell.name, self.folder / "cells" / cell.name, recipe)

    def look(self) -> None:
        """Find out what is finished, without running anything."""
        for teacher in self.teachers():
            self._is_finished(teacher)
        for cell in self.cells:
            # A student of an earlier teacher is not this recipe's.
            if all(name in self.status.current for name in self._teachers_of(cell)):
                self._is_finished(self.student(cell))

    def train(self, runner: Runner) -> None:
        """Train the teachers, then the cells; the table is written after each of them."""
        self._run_all([[teacher] for teacher in self.teachers()], runner)
        students = []
        for cell in self.cells:
            failed = [name for name in self._teachers_of(cell) if name in self.status.failed]
            if failed:
                self.status.failed[cell.name] = f"its {failed[0]} failed"
            else:
                students.append(self.student(cell))
        self._run_all(self._units(students), runner)

    def _units(self, students: list[RecipeRun]) -> list[list[RecipeRun]]:
        """The runs that one process does each: one, or of a shared teacher its part of them all."""
        if not (self.sweep.recipe.get("engine") or {}).get("share_teacher"):
            return [[run] for run in students]
        by_teacher: dict[Any, list[RecipeRun]] = {}
        for run in students:
            if not self._is_finished(run, mends=True):
                size = run.recipe["distill"]["train"].get("batch_size")
                teachers = json.dumps(run.recipe["teacher"], sort_keys=True)
                by_teacher.setdefault((teachers, size), []).append(run)
        return [runs[i :: self.jobs] for runs in by_teacher.values() for i in range(self.jobs)]

    def _is_finished(self, run: RecipeRun, *, mends: bool = False) -> bool:
        """Whether a run is done; a damaged one has failed, unless it is about to be mended."""
        try:
            is_finished = run.is_finished()
        except UserError as error:
            if mends:
                log(f"{run.name}: {error}")
            else:
                self.status.failed[run.name] = str(error)
            return False
        if is_finished:
            self.status.current.add(run.name)
        return is_finished

    def _run_all(self, units: list[list[RecipeRun]], runner: Runner) -> None:
        waiting = [[run for run in unit if not self._is_known(run)] for unit in units]
        self._write_table()
        stopped = threading.Event()
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                started: dict[Future[Ended], list[RecipeRun]] = {
                    pool.submit(self._run, unit, runner, stopped): unit for unit in waiting if unit
                }
                for future in as_completed(started):
                    for run in started[future]:
                        self._note(run, future.result(), alone=len(started[future]) == 1)
                    self._write_table()
            except BaseException:
                # What waits is not started, what runs keeps its last whole epoch.
                pool.shutdown(wait=False, cancel_futures=True)
                stopped.set()
                raise

    def _write_table(self) -> None:
        write_table(self.sweep, self.folder, self.status)

    def _is_known(self, run: RecipeRun) -> bool:
        return run.name in self.status.failed or self._is_finished(run, mends=True)

    def _note(self, run: RecipeRun, ended: Ended, *, alone: bool) -> None:
        """Record the outcome of a run whose process has ended."""
        why = problem(ended, run.folder / "log.txt", None if alone else run.file)
        if why is not None and (alone or not self._is_finished(run)):
            self.status.failed[run.name] = why
            log(f"{run.name}: failed: {why}")
        elif self._is_finished(run):
            log(f"{run.name}: done")

    def _run(self, unit: list[RecipeRun], runner: Runner, stopped: threading.Event) -> Ended:
        """Run the recipes in a process of their own."""
        for run in unit:
            log(f"{run.name}: starts; its log is {run.folder}/log.txt")
        names, start = ", ".join(run.name for run in unit), time.perf_counter()
        try:
            ended = runner(self._command(unit), stopped)
        except KeyboardInterrupt:
            log(f"{names}: stopped after {time.perf_counter() - start:.0f} s")
            raise
        log(f"{names}: {time.perf_counter() - start:.0f} s")
        return ended

    def _command(self, unit: list[RecipeRun]) -> Command:
        """The command that runs them; writes their recipes as files."""
        for run in unit:
            run.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(run.file, yaml.safe_dump(run.recipe, sort_keys=False))
        folders = tuple(run.folder for run in unit)
        if len(unit) > 1:
            files = (str(run.file) for run in unit)
            return Command(("-m", "compress.sweep.lockstep", *files, *self.options), folders)
        until = ["--until", unit[0].until] if unit[0].until else []
        arguments = (str(unit[0].file), "--out", str(folders[0]), *until)
        return Command(("-m", "compress.pipeline", *arguments, *self.options), folders)

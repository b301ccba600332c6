"""The results of a sweep's directory: those of its cells, by pair and row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from compress.comparison.accuracy import Score, compare_scores
from compress.comparison.predictions import Predictions
from compress.errors import UserError
from compress.reporting.collect import RunData, load
from compress.sweep.schema import Cell, PaperValue, Status, Sweep, cells

TEACHER = "teacher"


class Statistic(NamedTuple):
    """A number of a training: its key in results, what tables call it, and when it is taken."""

    key: str
    title: str
    when: str


STATISTICS: Mapping[str, Statistic] = {
    "last_epoch": Statistic("top1_percent", "top-1 accuracy", "last epoch"),
    "best_on_test": Statistic("best_on_test_top1_percent", "top-1 accuracy", "best on test"),
    "knn": Statistic("knn_top1_percent", "k-NN top-1 accuracy", "last epoch"),
    "mutual_knn": Statistic("mutual_knn_percent", "neighbours of the teacher", "last epoch"),
}


@dataclass(frozen=True)
class CellResult:
    """Accuracies of a cell (or a pair's teacher), or the reason why there are none."""

    pair: str
    row: str
    percents: tuple[float, ...] = ()
    test_images: int = 0
    paper: PaperValue = None
    trials: tuple[Mapping[str, Any], ...] = ()
    refused: str = ""
    failed: str = ""
    account: Mapping[str, Any] = field(default_factory=dict)  # costs, where the cell counts them
    predictions: Mapping[int, Predictions] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean over the trials, in percent; None where there is none."""
        return mean(self.percents) if self.percents else None

    @property
    def score(self) -> Score | None:
        """Its accuracy, to compare with that of KD; None where nothing is trained."""
        if self.mean is None:
            return None
        return Score(self.mean, self.test_images, self.predictions)


@dataclass
class Results:
    """Everything that a sweep's directory holds, by pair and row."""

    sweep: Sweep
    by_cell: dict[tuple[str, str], CellResult] = field(default_factory=dict)

    @property
    def rows(self) -> list[str]:
        """The teacher, then the methods in the sweep's order.

        After a method come the networks that are judged beside it, as `METHOD/NAME`.
        """
        methods = [method.row for method in self.sweep.methods]
        known = dict.fromkeys(row for _, row in self.by_cell)
        beside = {row: [one for one in known if one.startswith(f"{row}/")] for row in methods}
        return [TEACHER, *(one for row in methods for one in (row, *beside[row]))]

    @property
    def statistic(self) -> Statistic:
        """The number that the sweep is about."""
        return STATISTICS[self.sweep.statistic]

    def reading(self, one: CellResult) -> str:
        """Against KD: "higher", "lower", "not distinguishable", or "" where it says nothing."""
        reference = self.sweep.reference
        other = self.by_cell.get((one.pair, reference)) if reference else None
        is_student = one.row not in (TEACHER, reference)
        if other is None or other.score is None or one.score is None or not is_student:
            return ""
        return compare_scores(one.score, other.score).reading


def collect(sweep: Sweep, folder: Path, status: Status) -> Results:
    """Read the finished runs of a sweep; what is not there yet, or is of another recipe, is not."""
    results = Results(sweep)
    key = results.statistic.key
    for index, pair in enumerate(sweep.pairs):
        percents: tuple[float, ...] = ()
        for label in pair.teachers:
            if f"teacher {label}" in status.current:
                folder_of = folder / "teachers" / label
                networks = _load(folder_of, f"teacher {label}", status).teachers
                percents += tuple(p for network in networks for p in network.percents(key))
        failed = (status.failed.get(f"teacher {label}", "") for label in pair.teachers)
        results.by_cell[pair.name, TEACHER] = CellResult(
            pair.name,
            TEACHER,
            percents,
            paper=_paper(sweep, TEACHER, index),
            failed=next(filter(None, failed), ""),
        )
    for cell in cells(sweep):
        trials: tuple[Mapping[str, Any], ...] = ()
        account: Mapping[str, Any] = {}
        predictions: dict[int, Predictions] = {}
        if cell.name in status.current:
            wanted = cell.method.trials or sweep.recipe.get("trials", 1)
            students = _load(folder / "cells" / cell.name, cell.name, status).students
            trials = tuple(t for s in students for t in s.trials if t.get("trial", 0) < wanted)
            account = next((s.account for s in students), {})
            if sweep.statistic == "last_epoch":  # that of the predictions
                saved = (one for s in students for one in s.predictions.items())
                predictions = {trial: one for trial, one in saved if trial < wanted}
        results.by_cell[cell.pair.name, cell.method.row] = CellResult(
            cell.pair.name,
            cell.method.row,
            tuple(trial[key] for trial in trials if key in trial),
            trials[0]["test_images"] if trials else 0,
            _paper(sweep, cell.method.row, sweep.pairs.index(cell.pair)),
            trials,
            status.refused.get(cell.name, ""),
            status.failed.get(cell.name, ""),
            account=account,
            predictions=predictions,
        )
        results.by_cell |= _judged_beside(results, cell)
    return results


def _judged_beside(results: Results, cell: Cell) -> dict[tuple[str, str], CellResult]:
    """Results of what is judged beside a cell's network, also where only the paper has some."""
    sweep, row = results.sweep, cell.method.row
    one = results.by_cell[cell.pair.name, row]
    key = f"{results.statistic.key}/"
    names = [k.removeprefix(key) for trial in one.trials[:1] for k in trial if k.startswith(key)]
    names += [k.removeprefix(f"{row}/") for k in sweep.paper if k.startswith(f"{row}/")]
    return {
        (cell.pair.name, f"{row}/{name}"): CellResult(
            cell.pair.name,
            f"{row}/{name}",
            tuple(trial[key + name] for trial in one.trials if key + name in trial),
            one.test_images,
            _paper(sweep, f"{row}/{name}", sweep.pairs.index(cell.pair)),
        )
        for name in dict.fromkeys(names)
    }


def _load(folder: Path, name: str, status: Status) -> RunData:
    """A run directory; where it is damaged the run counts as failed, and the others go on."""
    try:
        return load(folder)
    except UserError as error:
        status.failed[name] = str(error)
        return RunData(folder, name, "", {}, {}, {}, (), ())


def _paper(sweep: Sweep, row: str, index: int) -> PaperValue:
    values = sweep.paper.get(row)
    return values[index] if values else None

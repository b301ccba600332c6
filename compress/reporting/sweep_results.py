"""What a sweep's directory holds: the results of its cells, by pair and row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from compress.reporting.collect import load
from compress.reporting.ranking import difference
from compress.sweep_recipe import PaperValue, Sweep, cells

TEACHER, REFERENCE = "teacher", "kd"
KEYS = {"last_epoch": "top1_percent", "best_on_test": "best_on_test_top1_percent"}


@dataclass(frozen=True)
class Found:
    """What a cell (or a pair's teacher) has to say."""

    pair: str
    row: str
    percents: tuple[float, ...] = ()
    test_images: int = 0
    paper: PaperValue = None
    trials: tuple[Mapping[str, Any], ...] = ()
    refused: str = ""
    failed: str = ""

    @property
    def mean(self) -> float | None:
        """Mean over the trials, in percent; None where there is none."""
        return mean(self.percents) if self.percents else None


@dataclass
class Results:
    """Everything that a sweep's directory holds, by pair and row."""

    sweep: Sweep
    found: dict[tuple[str, str], Found] = field(default_factory=dict)

    @property
    def rows(self) -> list[str]:
        """The teacher, then the methods in the sweep's order."""
        return [TEACHER, *(method.row for method in self.sweep.methods)]

    def reading(self, one: Found) -> str:
        """Against KD: "higher", "lower", "not distinguishable", or "" where it says nothing."""
        other = self.found.get((one.pair, REFERENCE))
        is_student = one.row not in (TEACHER, REFERENCE)
        if other is None or other.mean is None or one.mean is None or not is_student:
            return ""
        return difference(one.mean, one.test_images, other.mean, other.test_images).reading


def collect(
    sweep: Sweep, folder: Path, refused: Mapping[str, str], failed: Mapping[str, str]
) -> Results:
    """Read the runs of a sweep; what is not there yet stays empty."""
    results, key = Results(sweep), KEYS[sweep.statistic]
    for index, pair in enumerate(sweep.pairs):
        networks = load(folder / "teachers" / pair.teacher).teachers
        paper = sweep.paper.get(TEACHER, [])
        results.found[pair.name, TEACHER] = Found(
            pair.name,
            TEACHER,
            tuple(p for network in networks for p in network.percents(key)),
            paper=paper[index] if paper else None,
            failed=failed.get(f"teacher {pair.teacher}", ""),
        )
    for cell in cells(sweep):
        students = load(folder / "cells" / cell.name).students
        paper = sweep.paper.get(cell.method.row, [])
        trials = tuple(trial for network in students for trial in network.trials)
        results.found[cell.pair.name, cell.method.row] = Found(
            cell.pair.name,
            cell.method.row,
            tuple(trial[key] for trial in trials),
            trials[0]["test_images"] if trials else 0,
            paper[sweep.pairs.index(cell.pair)] if paper else None,
            trials,
            refused.get(cell.name, ""),
            failed.get(cell.name, ""),
        )
    return results

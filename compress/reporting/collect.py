"""Read whatever stage results a run directory has; no file is required."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.comparison.predictions import PREDICTIONS
from compress.comparison.recommendation import LAST_EPOCH, SELECTED, Recommendation
from compress.comparison.students import (
    BASELINE,
    TOP1,
    highest,
    in_reading_order,
    recommend_student,
    saved_predictions,
    student_predictions,
    trials_by_label,
)
from compress.recipe.files import parse_yaml
from compress.recipe.schema import numbered, row_of
from compress.reporting.network import Network
from compress.storage.files import read_mapping
from compress.storage.integrity import UNSEALED_RESULT, require_seal
from compress.tasks import Task, task_for


@dataclass(frozen=True)
class RunData:
    """Content of a run directory that the report needs."""

    folder: Path
    name: str
    recipe_text: str
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]  # stage name -> its result.json
    teachers: tuple[Network, ...]
    students: tuple[Network, ...]

    @property
    def networks(self) -> tuple[Network, ...]:
        """Teachers first, then the students in reading order."""
        return self.teachers + self.students

    @property
    def headline(self) -> str:
        """The epoch of the accuracies: the last, or the one that a validation split chose."""
        data = _mapping(self.resolved.get("data"))
        return SELECTED if data.get("validation") else LAST_EPOCH

    @property
    def baseline(self) -> Network | None:
        """The student trained alone."""
        return next((row for row in self.students if row.label == BASELINE), None)

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The recommended student by the rule in `comparison.recommendation.rule`."""
        return recommend_student(self.folder, self.results, method_labels(self.resolved))

    @property
    def recommended(self) -> Network | None:
        """The recommended student itself; of another metric than top-1 the one with the highest."""
        if self.task.metric != TOP1:
            label = highest(self.results, method_labels(self.resolved), self.task.metric)
        else:
            label = self.recommendation.label if self.recommendation else None
        return next((row for row in self.students if row.label == label), None)

    @property
    def task(self) -> Task:
        """The task of the run's networks."""
        name = str(self.resolved.get("task", "classification"))
        labels = _mapping(self.resolved.get("data")).get("labels") is not False
        return task_for(name, labels=labels)

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes, from a student's description; none where there is none."""
        paths = sorted(self.folder.glob("distill/*/student.json"))
        names = _json(paths[0]).get("class_names") if paths else None
        return [str(name) for name in names] if isinstance(names, list) else []

    def values(self, stage: str) -> Mapping[str, Any]:
        """The reproducible half of a stage's result; empty if the stage has not run."""
        return _mapping(self.results.get(stage, {}).get("values"))

    def measured(self, stage: str) -> Mapping[str, Any]:
        """The timed half of a stage's result."""
        return _mapping(self.results.get(stage, {}).get("measured"))

    def why_absent(self, stage: str) -> str:
        """A sentence about a stage without a result."""
        if self.resolved.get(stage, ...) in (None, []):
            return f"The recipe leaves out the {stage} stage."
        return f"The {stage} stage has not run."

    def transfers(self) -> list[str]:
        """Names of the transfer stages that have run, in the order of their names."""
        return [stage for stage in self.results if stage.startswith("transfer/")]


def load(folder: Path) -> RunData:
    """Read a run directory; every file in it may be missing."""
    results = _results(folder)
    resolved = _resolved(folder / "resolved.yaml")
    recipe = folder / "recipe.yaml"
    return RunData(
        folder=folder,
        name=str(_json(folder / "run.json").get("name") or folder.resolve().name),
        recipe_text=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        resolved=resolved,
        environment=_json(folder / "environment.json"),
        results=results,
        teachers=_teachers(folder, results),
        students=_students(folder, results, method_labels(resolved)),
    )


def metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; none where the file does not exist or is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (FileNotFoundError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "epoch" in row for row in rows) else []


def _results(folder: Path) -> dict[str, Mapping[str, Any]]:
    order = ("teacher", "distill/*", "fuse", "account", "export", "transfer/*")
    paths = [path for name in order for path in sorted(folder.glob(f"{name}/result.json"))]
    results = {path.parent.relative_to(folder).as_posix(): _result(path) for path in paths}
    # A result that belongs to an earlier version of the recipe waits for its stage to run again.
    current = _json(folder / "run.json").get("current", list(results))
    return {stage: result for stage, result in results.items() if stage in current}


def _result(path: Path) -> Mapping[str, Any]:
    result = read_mapping(path)
    require_seal(result, path, UNSEALED_RESULT)
    return result


def _teachers(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> tuple[Network, ...]:
    result = results.get("teacher", {})
    networks = []
    for number, row in enumerate(_mapping(result.get("values")).get("teachers") or []):
        account, latency = _cost(results, str(row["label"]), "teacher")
        saved = saved_predictions(folder / "teacher", result, f"{number}/{PREDICTIONS}")
        predictions = {} if saved is None else {0: saved}
        networks.append(Network(str(row["label"]), True, (row,), account, latency, predictions))
    return tuple(networks)


def _students(
    folder: Path, results: Mapping[str, Mapping[str, Any]], labels: Sequence[str]
) -> tuple[Network, ...]:
    trials = trials_by_label(results)
    networks = []
    for label in in_reading_order(trials, labels):
        rows = tuple(_mapping(result.get("values")) for result in trials[label].values())
        account, latency = _cost(results, label, "deployed")
        predictions = student_predictions(folder, trials[label])
        networks.append(Network(label, False, rows, account, latency, predictions))
    return tuple(networks)


def _cost(
    results: Mapping[str, Mapping[str, Any]], label: str, role: str
) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
    """The row of `account` for a network, and its latency by batch size."""
    account = results.get("account", {})
    rows = _mapping(account.get("values")).get("networks") or []
    matches = [row for row in rows if row.get("label") == label and row.get("role") == role]
    latency = _mapping(_mapping(account.get("measured")).get("latency"))
    return (matches[0] if matches else {}), _mapping(latency.get(label))


def method_labels(resolved: Mapping[str, Any]) -> list[str]:
    """Labels of the recipe's methods, the main one first."""
    distill = _mapping(resolved.get("distill"))
    parts = [distill.get("method"), *(distill.get("compare") or [])]
    named = [part for part in parts if isinstance(part, dict)]
    rows = [row_of(part.get("label"), str(part.get("name"))) for part in named]
    return [*numbered([*zip(rows, named, strict=True)])]


def _resolved(path: Path) -> Mapping[str, Any]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return _mapping(parse_yaml(text, str(path)))


def _json(path: Path) -> Mapping[str, Any]:
    return read_mapping(path) if path.is_file() else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

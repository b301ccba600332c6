"""Read whatever stage results a run directory has; no file is required."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.recipe.files import parse_yaml
from compress.reporting.network import BASELINE, Network
from compress.reporting.ranking import LAST_EPOCH, SELECTED, Candidate, Recommendation, recommend
from compress.storage.files import read_mapping
from compress.storage.integrity import UNSEALED_RESULT, require_seal


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

    @property
    def recommendation(self) -> Recommendation | None:
        """The recommended student by the rule in `ranking.rule`."""
        return recommend(list(self._candidates()))

    @property
    def recommended(self) -> Network | None:
        """The recommended student itself."""
        choice = self.recommendation
        return next((row for row in self.students if choice and row.label == choice.label), None)

    def _candidates(self) -> Iterable[Candidate]:
        for row in self.students:
            allowed = all(trial.get("recommended_candidate", True) for trial in row.trials)
            if allowed and row.top1_percent is not None and row.test_images:
                parameters = row.account.get("parameters")
                yield Candidate(row.label, row.top1_percent, row.test_images, parameters)

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
        teachers=_teachers(results),
        students=_students(results, _reading_order(resolved)),
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


def _teachers(results: Mapping[str, Mapping[str, Any]]) -> tuple[Network, ...]:
    rows = _mapping(results.get("teacher", {}).get("values")).get("teachers") or []
    return tuple(
        Network(str(row["label"]), True, (row,), *_cost(results, str(row["label"]), "teacher"))
        for row in rows
    )


def _students(
    results: Mapping[str, Mapping[str, Any]], order: Mapping[str, int]
) -> tuple[Network, ...]:
    trials: dict[str, list[Mapping[str, Any]]] = {}
    for stage, result in results.items():
        if stage.startswith("distill/"):
            row = _mapping(result.get("values"))
            trials.setdefault(str(row.get("label", stage.split("/")[1])), []).append(row)
    labels = sorted(trials, key=lambda label: (order.get(label, len(order)), label))
    return tuple(
        Network(label, False, tuple(_by_trial(trials[label])), *_cost(results, label, "deployed"))
        for label in labels
    )


def _by_trial(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: int(row.get("trial", 0)))


def _cost(
    results: Mapping[str, Mapping[str, Any]], label: str, role: str
) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
    """The row of `account` for a network, and its latency by batch size."""
    account = results.get("account", {})
    rows = _mapping(account.get("values")).get("networks") or []
    matches = [row for row in rows if row.get("label") == label and row.get("role") == role]
    latency = _mapping(_mapping(account.get("measured")).get("latency"))
    return (matches[0] if matches else {}), _mapping(latency.get(label))


def _reading_order(resolved: Mapping[str, Any]) -> dict[str, int]:
    """Student alone and kd first, then the compared methods, last the method that is shipped."""
    distill = _mapping(resolved.get("distill"))
    parts = [*(distill.get("compare") or []), distill.get("method")]
    named = [part for part in parts if isinstance(part, dict)]
    labels = [str(part.get("label") or part.get("name")) for part in named]
    return {label: place for place, label in enumerate(dict.fromkeys([BASELINE, "kd", *labels]))}


def _resolved(path: Path) -> Mapping[str, Any]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return _mapping(parse_yaml(text, str(path)))


def _json(path: Path) -> Mapping[str, Any]:
    return read_mapping(path) if path.is_file() else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

"""The students of a run directory as candidates, from the results of its stages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from compress.comparison.accuracy import Score, compare_scores, format_p_value
from compress.comparison.predictions import PREDICTIONS, Predictions, read_predictions
from compress.comparison.recommendation import Candidate, Recommendation, recommend
from compress.errors import UserError
from compress.storage.integrity import find_damaged

BASELINE = "none"  # the label of the student that is trained without a teacher
TOP1 = "top1_percent"  # the metric that standard errors and paired tests are about
Result = Mapping[str, Any]  # the content of a stage's result.json


def recommend_student(
    run_folder: Path, results: Mapping[str, Result], labels: Sequence[str]
) -> Recommendation | None:
    """The student that `recommendation.recommend` chooses in a run.

    Args:
        results: stage -> result, of every finished `distill/*` and, for the sizes, of `account`.
        labels: those of the recipe's methods, the main one first; they decide between equals.
    """
    trials, parameters = trials_by_label(results), _parameters(results)
    candidates = []
    for label in in_reading_order(trials, labels):
        values = [_values(result) for result in trials[label].values()]
        score = _score(run_folder, results, label)
        if score is not None and all(row.get("recommended_candidate", True) for row in values):
            candidates.append(Candidate(label, score, parameters.get(label)))
    return recommend(candidates)


@dataclass(frozen=True)
class ShippedStudent:
    """The label of the student that ships; `remark` says why it is not the recommended one."""

    label: str
    remark: str | None = None


def choose_shipped(
    run_folder: Path,
    results: Mapping[str, Result],
    labels: Sequence[str],
    wished: str | None = None,
    metric: str = TOP1,
) -> ShippedStudent:
    """The recommended student, or the one that somebody wished.

    Args:
        results, labels: see `recommend_student`.
        wished: the label that a recipe or a command line names.
        metric: the key of the task's metric; of another than top-1 the highest mean ships.
    """
    if metric != TOP1:
        return ShippedStudent(wished or highest(results, labels, metric) or labels[0])
    choice = recommend_student(run_folder, results, labels)
    if choice is None or wished in (None, choice.label):
        return ShippedStudent(choice.label if choice else wished or labels[0])
    return ShippedStudent(str(wished), _remark(run_folder, results, str(wished), choice.label))


def highest(results: Mapping[str, Result], labels: Sequence[str], metric: str) -> str | None:
    """The student with the highest mean of a metric over its trials, of equal ones the first."""
    trials, means = trials_by_label(results), dict[str, float]()
    for label in in_reading_order(trials, labels):
        rows = [_values(result).get(metric) for result in trials[label].values()]
        if rows and all(isinstance(value, (int, float)) for value in rows):
            means[label] = mean(map(float, rows))  # type: ignore[arg-type]
    return max(means, key=lambda label: means[label], default=None)


def _remark(run_folder: Path, results: Mapping[str, Result], wished: str, best: str) -> str:
    """Why another student than the wished one is recommended, by accuracy and size."""
    text = f"{wished} was asked for; by the rule of the report {best} is recommended"
    one, other = (_score(run_folder, results, label) for label in (best, wished))
    if one is not None and other is not None:
        difference = compare_scores(one, other)
        p_value = difference.p_value
        p_text = "" if p_value is None else f", {format_p_value(p_value)}"
        text += (
            f": top-1 {one.top1_percent:.2f} % against {other.top1_percent:.2f} % "
            f"({difference.reading}{p_text})"
        )
    sizes = _parameters(results)
    if wished in sizes and best in sizes:
        text += f", {sizes[best]:,} parameters against {sizes[wished]:,}"
    return text


def _score(run_folder: Path, results: Mapping[str, Result], label: str) -> Score | None:
    trials = trials_by_label(results).get(label, {})
    values = [_values(result) for result in trials.values()]
    return score_of(values, student_predictions(run_folder, trials))


def _parameters(results: Mapping[str, Result]) -> dict[str, int]:
    """Label -> parameters of each deployed student, where `account` has run."""
    networks = _values(results.get("account") or {}).get("networks") or []
    return {row["label"]: row["parameters"] for row in networks if row.get("role") == "deployed"}


def in_reading_order(trained: Iterable[str], labels: Sequence[str]) -> list[str]:
    """Student alone and kd first, then the compared methods, last the main one, then unknown ones.

    Args:
        trained: labels to be ordered.
        labels: those of the recipe's methods, the main one first.
    """
    order = dict.fromkeys([BASELINE, "kd", *labels[1:], *labels[:1]])
    place = {label: number for number, label in enumerate(order)}
    return sorted(trained, key=lambda label: (place.get(label, len(place)), label))


def trials_by_label(results: Mapping[str, Result]) -> dict[str, dict[str, Result]]:
    """Label -> stage -> result of each of its trainings, in the order of their trials."""
    trials: dict[str, dict[str, Result]] = {}
    for stage, result in results.items():
        if stage.startswith("distill/"):
            label = str(_values(result).get("label") or re.sub(r"^distill/|-trial\d+$", "", stage))
            trials.setdefault(label, {})[stage] = result
    return {
        label: dict(sorted(several.items(), key=lambda one: _trial(one[1])))
        for label, several in trials.items()
    }


def score_of(
    rows: Sequence[Mapping[str, Any]],
    predictions: Mapping[int, Predictions],
    *,
    fixed: bool = False,
) -> Score | None:
    """The score of trainings from the `values` of their stages; None where one is not known."""
    percents = [float(row["top1_percent"]) for row in rows if row.get("top1_percent") is not None]
    counts = [int(row["test_images"]) for row in rows if row.get("test_images")]
    if not percents or not counts:
        return None
    return Score(mean(percents), counts[0], predictions, fixed)


def student_predictions(run_folder: Path, trials: Mapping[str, Result]) -> dict[int, Predictions]:
    """The saved predictions of a student's trainings; none where one lacks them."""
    saved = {
        _trial(result): saved_predictions(run_folder / stage, result)
        for stage, result in trials.items()
    }
    known = {trial: predictions for trial, predictions in saved.items() if predictions is not None}
    return known if len(known) == len(saved) else {}


def saved_predictions(folder: Path, result: Result, name: str = PREDICTIONS) -> Predictions | None:
    """A stage's predictions, where its result vouches for them and they are whole."""
    records = result.get("files") or {}
    if name not in records or find_damaged(folder, {name: records[name]}):
        return None
    try:
        return read_predictions(folder / name)
    except UserError:
        return None


def _values(result: Result) -> Mapping[str, Any]:
    values = result.get("values")
    return values if isinstance(values, dict) else {}


def _trial(result: Result) -> int:
    return int(_values(result).get("trial", 0))

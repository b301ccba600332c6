"""The report for programs: `values` (bit-reproducible) and `measured` (times, the machine)."""

import math
from typing import Any

from compress.comparison.accuracy import AccuracyDifference
from compress.comparison.recommendation import rule
from compress.reporting.collect import RunData
from compress.reporting.headline import read_lines
from compress.reporting.memory import student_memory
from compress.reporting.network import Network
from compress.reporting.representation import representation_values
from compress.reporting.sections import stage_seconds

_COST = (
    "parameters",
    "macs",
    "flops",
    "size_bytes",
    "peak_activation_bytes",
    "pruning_ratio_percent",
)


def report_values(run: RunData) -> dict[str, Any]:
    """Everything that the report prints, as JSON; NaN and infinities become null."""
    values: dict[str, Any] = _strict({"values": _values(run), "measured": _measured(run)})
    return values


def _values(run: RunData) -> dict[str, Any]:
    choice = run.recommendation
    recommendation = choice and {
        "label": choice.label,
        "most_accurate": choice.most_accurate,
        "rule": rule(run.headline),
    }
    return {
        "name": run.name,
        "stages": list(run.results),
        "recommendation": recommendation,
        "shipped": _shipped(run),
        "networks": [_network(run, row) for row in run.networks],
        "fuse": run.values("fuse"),
        "account": run.values("account"),
        "export": run.values("export"),
        "transfer": {stage.split("/", 1)[1]: run.values(stage) for stage in run.transfers()},
        "representation": representation_values(run),
    }


def _shipped(run: RunData) -> list[dict[str, Any]]:
    """The files that ship, against the teacher."""
    lines = read_lines(run)
    teacher, files = lines.teacher, lines.files
    return [
        {
            "file": row.name,
            "student": row.note,
            "top1_percent": row.score.top1_percent if row.score else None,
            **({} if row.cosine is None else {"mean_cosine": row.cosine}),
            "size_bytes": row.size_bytes,
            "difference_to_teacher": _difference(row.minus(teacher) if teacher else None),
        }
        for row in files
    ]


def _difference(versus: AccuracyDifference | None) -> dict[str, Any] | None:
    if versus is None:
        return None
    return {
        "points": versus.points,
        "standard_error_points": None if versus.is_paired else versus.standard_error,
        "interval_points": versus.interval,
        "p_value": versus.p_value,
        "reading": versus.reading,
    }


def _network(run: RunData, row: Network) -> dict[str, Any]:
    versus = None if row is run.baseline else row.minus(run.baseline)
    return {
        "label": row.label,
        "role": "teacher" if row.is_teacher else "deployed",
        run.task.metric: row.mean_of(run.task.metric),
        **{key: row.mean_of(key) for key in run.task.judged},
        "standard_error_points": row.standard_error,
        "difference_to_student_alone": _difference(versus),
        "trials": [dict(trial) for trial in row.trials],
        **{key: row.account.get(key) for key in _COST},
    }


def _measured(run: RunData) -> dict[str, Any]:
    account, export = run.measured("account"), run.measured("export")
    return {
        "seconds": stage_seconds(run),
        "memory": student_memory(run),
        "latency": account.get("latency") or {},
        "latency_protocol": account.get("protocol") or {},
        "onnx_latency": export.get("latency") or {},
        "onnx_latency_protocol": export.get("protocol") or {},
        "environment": dict(run.environment),
    }


def _strict(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

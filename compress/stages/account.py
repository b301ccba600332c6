"""Costs of every network of a run: teachers, the plain student, and what each method ships.

Parameters are those of the unfolded networks, as papers count them. MACs are the same folded or
not. Activations and latency are those of the folded networks, which is what runs. Pruning ratios
are relative to the first teacher of the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.accounting import (
    count_parameters,
    measure_latency,
    network_costs,
    peak_activation_bytes,
    protocol,
    pruning_columns,
    size_bytes,
)
from compress.console.messages import bar, log
from compress.model_files.artifacts import Student, build_plain, load_student
from compress.models.folding import fold_batchnorm
from compress.stages import logits_only
from compress.stages.job import Job, Outcome
from compress.stages.teacher import load_teachers
from compress.storage.results import read_result

RESULT_VERSION = 1
IN_EVERY_PROCESS = False


@dataclass(frozen=True)
class _Entry:
    """A network to be accounted, unfolded and folded, what it is in this run and what it reads."""

    label: str
    role: str
    network: nn.Module
    folded: nn.Module | None
    input_shape: tuple[int, int, int]
    file: Mapping[str, Any] | None = None  # of a teacher that is no network, what is known of it


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """Nothing beside the result itself."""
    return {}


def run(job: Job) -> Outcome:
    """Account teachers, plain student and those of `arguments["students"]` (stage names)."""
    entries, input_shape = _networks(job)
    teacher = next(e for e in entries if e.role == "teacher")
    student = next(e for e in entries if e.role == "student")
    file = teacher.file
    totals = {
        "student": count_parameters(student.network),
        "teacher": count_parameters(teacher.network) if file is None else file["parameters"],
    }
    rows = []
    with bar("  counting", len(entries)) as advance:
        for entry in entries:
            row = _costs(entry)
            if entry.input_shape != input_shape:
                row["input_shape"] = list(entry.input_shape)
            if entry.role == "deployed":
                row |= pruning_columns(entry.network, **totals)
            rows.append(row)
            advance(note=entry.label)
    for row in rows:
        log(f"  {_words(row)}")
    values = {
        "input_shape": list(input_shape),
        "reference_teacher": teacher.label,
        "peak_activation_batch": 1,
        "networks": rows,
    }
    return Outcome(values, _latencies(job, entries))


def _students(job: Job) -> dict[str, Student]:
    """Label -> student of the first trial; every trial deploys the same network."""
    students = {}
    for name in job.arguments["students"]:
        values = read_result(job.run_folder, name)["values"]
        if values["trial"] == 0:
            students[str(values["label"])] = load_student(job.run_folder / name)
    return students


def _networks(job: Job) -> tuple[list[_Entry], tuple[int, int, int]]:
    """Every network on the CPU, in the order of the report, and the images' (C, H, W)."""
    students = _students(job)
    described = next(iter(students.values())).description
    teachers = read_result(job.run_folder, "teacher")["values"]["teachers"]
    entries = [
        _teacher_entry(row["label"], teacher)
        for row, teacher in zip(teachers, load_teachers(job.run_folder), strict=True)
    ]
    shape = described["input_shape"]
    entries.append(_entry("student", "student", build_plain(described), shape))
    entries += [_entry(label, "deployed", s.network, shape) for label, s in students.items()]
    return entries, entries[-1].input_shape


def _teacher_entry(label: str, teacher: Student) -> _Entry:
    shape, file = teacher.description["input_shape"], teacher.description.get(logits_only.KEY)
    if file is None:
        return _entry(label, "teacher", teacher.network, shape)
    return _Entry(label, "teacher", teacher.network, None, tuple(shape), file)


def _entry(label: str, role: str, network: nn.Module, shape: Sequence[int]) -> _Entry:
    channels, height, width = shape
    folded = fold_batchnorm(network).network
    return _Entry(label, role, network, folded, (channels, height, width))


def _costs(entry: _Entry) -> dict[str, Any]:
    """The columns that every network has, of one of its own images; of a file, what it tells."""
    if entry.folded is None:
        file = entry.file or {}
        known = {key: file[key] for key in ("parameters", "size_bytes")}
        return {"label": entry.label, "role": entry.role, **known, "note": _note(entry.label, file)}
    return {
        "label": entry.label,
        "role": entry.role,
        **network_costs(entry.network, entry.input_shape),
        "size_bytes": size_bytes(entry.network),
        "peak_activation_bytes": peak_activation_bytes(entry.folded, entry.input_shape, batch=1),
    }


def _words(row: Mapping[str, Any]) -> str:
    if "note" in row:
        return str(row["note"])
    return f"{row['label']}: {row['parameters']:,} parameters, {row['macs']:,} MACs"


def _note(label: str, file: Mapping[str, Any]) -> str:
    """What is known of a teacher that is a file, and what is not counted."""
    size, parameters = file["size_bytes"], file["parameters"]
    if parameters is None:
        return f"{label}: a file of outputs of {size:,} bytes; there is no network to count"
    return (
        f"{label}: an ONNX file of {size:,} bytes with {parameters:,} parameters in its "
        "initializers; MACs, activations and latency are not measured"
    )


def _latencies(job: Job, entries: list[_Entry]) -> dict[str, Any]:
    """Milliseconds per forward of every folded network at every batch size of the recipe."""
    settings = job.recipe.account.latency  # type: ignore[union-attr]  # the stage runs only if given
    entries = [entry for entry in entries if entry.folded is not None]
    folded = {e.label: e.folded.to(job.device) for e in entries if e.folded is not None}
    wait = partial(torch.cuda.synchronize, job.device) if job.device.type == "cuda" else None
    latency: dict[str, dict[str, Any]] = {label: {} for label in folded}
    with bar("  timing", len(settings.batch_sizes)) as advance, torch.inference_mode():
        for batch in settings.batch_sizes:
            shapes = {entry.label: (batch, *entry.input_shape) for entry in entries}
            images = {shape: torch.zeros(shape, device=job.device) for shape in shapes.values()}
            calls = {
                label: partial(network, images[shapes[label]]) for label, network in folded.items()
            }
            measurements = measure_latency(
                calls, warmup=settings.warmup, rounds=settings.rounds, synchronise=wait
            )
            for label, one in measurements.items():
                latency[label][str(batch)] = one.as_dict()
            advance(note=f"batch {batch}")
    timing = protocol(job.device, warmup=settings.warmup, rounds=settings.rounds)
    return {"latency": latency, "protocol": timing}

"""The stage `export`: the shipped student's ONNX file, gated by parity on the test images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.accounting import Latency, measure_latency, protocol
from compress.artifacts import Job, Outcome
from compress.console import bar, log
from compress.data import Preprocessing, evaluation_batches
from compress.deployment import Student, load_student
from compress.errors import UserError
from compress.recipe import Recipe
from compress.stages import dataset_of
from export.onnx import export_onnx, open_session, run_session
from export.parity import Parity, compare

RESULT_VERSION = 1
_BATCH = 64
_CPU = torch.device("cpu")


def run(job: Job) -> Outcome:
    """Export the student named by `arguments["label"]` to `student.onnx`."""
    settings = job.recipe.export
    if settings is None:
        raise UserError("export: the recipe has no export section")
    label = str(job.arguments["label"])
    student = load_student(job.run_folder / "distill" / label)
    path = job.folder / "student.onnx"
    parity = export_checked(
        student, path, job.recipe, opset=settings.opset, tolerance=settings.tolerance
    )
    log(
        f"  {path}: logits within {parity.max_abs_difference:.2g} of the trained network on "
        f"{parity.images} test images, top-1 {parity.onnx_top1_percent:.2f} %"
    )
    values = {
        "student": label,
        "file": path.name,
        "opset": settings.opset,
        "size_bytes": path.stat().st_size,
        "tolerance": settings.tolerance,
        **parity.as_dict(),
    }
    return Outcome(values, _latencies(path, student, job.recipe))


def export_checked(
    student: Student, path: Path, recipe: Recipe, *, opset: int, tolerance: float
) -> Parity:
    """Write the student to `path` only if the file agrees with it on the test images.

    Args:
        student: on the CPU.
        recipe: whose test images are compared on.
        tolerance: relative to the largest logit, see `Parity`.

    Raises:
        UserError: the data are not there, the export is impossible or differs too much; then
            `path` is as it was before.
    """
    described = student.description
    preprocessing = Preprocessing.from_dict(described["preprocessing"])
    channels, height, width = described["input_shape"]
    unchecked = path.with_name(path.name + ".unchecked")
    try:
        export_onnx(
            student.network,
            unchecked,
            input_shape=(channels, height, width),
            class_names=described["class_names"],
            preprocessing=described["preprocessing"],
            fingerprint=described["fingerprint"],
            opset=opset,
        )
        session = open_session(unchecked)
        parity = compare(student.network, session, _test_batches(recipe, preprocessing))
        parity.require(tolerance)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return parity


def _test_batches(
    recipe: Recipe, preprocessing: Preprocessing
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The test images as the network takes them, and their labels, on the CPU."""
    test = dataset_of(recipe).test
    with bar("  comparing", len(test)) as advance:
        for images, labels in evaluation_batches(test, _BATCH, preprocessing, _CPU):
            yield images, labels.cpu()
            advance(len(labels))


def _latencies(path: Path, student: Student, recipe: Recipe) -> dict[str, Any]:
    """Milliseconds per run of the file at each batch size, as `account` times torch."""
    if recipe.account is None:
        return {}
    asked = recipe.account.latency
    session = open_session(path)
    calls = {}
    for batch in asked.batch_sizes:
        images = torch.zeros(batch, *student.description["input_shape"]).numpy()
        calls[str(batch)] = partial(run_session, session, images)
    latency: dict[str, Latency] = {}
    for batch_size, call in calls.items():
        latency |= measure_latency({batch_size: call}, warmup=asked.warmup, rounds=asked.rounds)
    return {
        "latency": {batch: one.as_dict() for batch, one in latency.items()},
        "protocol": protocol(_CPU, warmup=asked.warmup, rounds=asked.rounds)
        | {"runtime": "ONNX Runtime"},
    }

"""Proof that what ships computes what was trained, for every trained student, on real images.

Two steps: encoder + projector + reused classifier become one network without the student's own
classifier (rebuilt from the artefact alone), and batch norm is folded into convolutions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.console.messages import bar, log
from compress.data import evaluation_batches
from compress.engine.checkpoint import part_of, trained_state
from compress.errors import UserError
from compress.model_files import artifacts
from compress.models.folding import fold_batchnorm
from compress.stages import dataset_of
from compress.stages.job import Job, Outcome
from compress.storage.results import read_result
from compress.taps import Tapped, TapSpecs

RESULT_VERSION = 1
IN_EVERY_PROCESS = False
IMAGES = 256


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """Nothing beside the result itself."""
    return {}


def run(job: Job) -> Outcome:
    """Compare logits of the trained parts, the deployed network and the folded one."""
    data = dataset_of(job.recipe)
    sample = data.test.subset(torch.arange(min(IMAGES, len(data.test))))
    batches = evaluation_batches(sample, IMAGES, data.preprocessing, torch.device("cpu"))
    every = [x for x, _ in batches]
    # Whole images may have sizes of their own; one of them is enough.
    images = torch.cat([x for x in every if x.shape[1:] == every[0].shape[1:]])
    tolerance = job.recipe.fuse.tolerance if job.recipe.fuse else 1e-3
    rows = []
    students: list[str] = job.arguments["students"]
    with bar("  comparing", len(students)) as advance:
        for name in students:
            rows.append(_compare(job.run_folder, name, images))
            advance()
    for row in rows:
        _gate(row, tolerance)
        log(
            f"  {row['label']}: fused differs by {row['fused_max_abs']:.1e}, folded by "
            f"{row['folded_max_abs']:.1e} ({row['folded']} batch norms folded)"
        )
    return Outcome({"tolerance": tolerance, "students": rows}, {})


@torch.no_grad()
def _compare(run_folder: Path, name: str, images: Tensor) -> dict[str, Any]:
    folder = run_folder / name
    values = read_result(run_folder, name)["values"]
    student = artifacts.load_student(folder)
    deployed = student.network(images)
    folded = fold_batchnorm(student.network)
    return {
        "label": values["label"],
        "trial": values["trial"],
        "images": len(images),
        "fused_max_abs": _difference(
            _trained_logits(folder, name, student.description, images), deployed
        ),
        "folded_max_abs": _difference(deployed, folded.network(images)),
        "folded": len(folded.folded),
        "not_folded": folded.not_folded,
    }


def _trained_logits(folder: Path, name: str, description: dict[str, Any], images: Tensor) -> Tensor:
    """The prediction of the separate parts, as the training's checkpoint holds them."""
    training, role = artifacts.last_training(folder, name, description)
    try:
        state = trained_state(training, role)
    except UserError as error:
        raise UserError(
            f"{error}; fuse compares it with the student: restore it, or train the student anew "
            f"with --fresh {name}"
        ) from None
    network = artifacts.build_plain(description)
    network.load_state_dict(part_of(state, "student."))
    network.eval()
    if description["method"] is None:
        logits: Tensor = network(images)
        return logits
    method = artifacts.rebuild_method(description["method"])
    wanted = (*method.student_taps, method.context.student.output)
    tapped = Tapped(network, TapSpecs.from_dict(description["taps"]), wanted)
    method.bind(tapped)
    artifacts.load_method_state(method, part_of(state, "method."))
    method.eval()
    return method.logits(method.extend(tapped(images)))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _gate(row: dict[str, Any], tolerance: float) -> None:
    for step in ("fused", "folded"):
        difference = row[f"{step}_max_abs"]
        if not difference <= tolerance:
            raise UserError(
                f"fuse: the {step} network of '{row['label']}' differs from the one before it by "
                f"{difference:.2e} in its logits on {row['images']} test images, more than "
                f"fuse.tolerance {tolerance:.0e}; it would not be what was trained"
            )

"""The stage `export`: the bundle of the student that ships, gated by parity on real images."""

import shutil
from pathlib import Path
from typing import Any

from compress.artifacts import Job, Outcome, read_json
from compress.deployment import Student, load_student
from compress.errors import UserError
from compress.recipe import Export, Recipe
from compress.stages import dataset_of
from export.bundle import Request, write_bundle

RESULT_VERSION = 2
BUNDLE = "bundle"


def run(job: Job) -> Outcome:
    """Write the bundle of the student named by `arguments["label"]` to `bundle/`."""
    settings = job.recipe.export
    if settings is None:
        raise UserError("export: the recipe has no export section")
    label = str(job.arguments["label"])
    student = load_student(job.run_folder / "distill" / label)
    folder = job.folder / BUNDLE
    shutil.rmtree(folder, ignore_errors=True)  # of a stage that was stopped before its result
    asked = request(label, student, job.run_folder, job.recipe, settings)
    values, measured = write_bundle(asked, folder)
    return Outcome({"folder": BUNDLE, **values}, measured)


def request(
    label: str, student: Student, run_folder: Path, recipe: Recipe, settings: Export
) -> Request:
    """What a run's student is bundled with."""
    section = recipe.data.model_dump(exclude={"root"})
    return Request(
        name=label,
        student=student,
        data=dataset_of(recipe),
        data_section={**section, "seed": _subset_seed(recipe)},
        settings=settings,
        latency=recipe.account.latency if recipe.account else None,
        costs=_costs(run_folder, label),
    )


def _subset_seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.data.seed is None else recipe.data.seed


def _costs(run_folder: Path, label: str) -> dict[str, Any] | None:
    """What `account` counted of this student, where it has run."""
    path = run_folder / "account" / "result.json"
    if not path.is_file():
        return None
    rows: list[dict[str, Any]] = read_json(path)["values"].get("networks", [])
    return next((row for row in rows if row.get("label") == label), None)

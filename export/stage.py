"""The stage `export`: the bundle of the student that ships, gated by parity on real images.

That is the recommended one, unless the recipe's `export.student` names another; see
`compress.comparison.students.choose_shipped` and `compress.run.plan`.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.errors import UserError
from compress.model_files.artifacts import Student, load_student
from compress.recipe.schema import Export, Recipe
from compress.stages import dataset_of
from compress.stages.job import Job, Outcome
from compress.storage.files import read_json, read_mapping
from compress.storage.fingerprints import changed_fields
from compress.storage.integrity import UNSEALED_RESULT, put_aside, require_seal
from export.bundle.manifest import NAME, read_manifest
from export.bundle.request import BundleRequest
from export.bundle.writer import UNFINISHED, write_bundle
from export.verify.checks import require_same_data

RESULT_VERSION = 4
IN_EVERY_PROCESS = False
BUNDLE, PREDICTIONS = "bundle", "predictions"


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """Every file of the bundle, with the digests that its manifest holds, and the predictions."""
    saved = sorted((folder / PREDICTIONS).glob("*.npz"))
    digests: dict[str, str | None] = {f"{PREDICTIONS}/{path.name}": None for path in saved}
    digests[f"{BUNDLE}/{NAME}"] = None
    if (folder / BUNDLE / NAME).is_file():
        try:
            entries = read_manifest(folder / BUNDLE).files
        except UserError:
            return {**digests, f"{BUNDLE}/{NAME}": ""}  # no file has that digest
        digests |= {f"{BUNDLE}/{name}": entry.sha256 for name, entry in entries.items()}
    return digests


def run(job: Job) -> Outcome:
    """Write the bundle of the student named by `arguments["label"]` to `bundle/`."""
    settings = job.recipe.export
    if settings is None:
        raise UserError("export: the recipe has no export section")
    label = str(job.arguments["label"])
    student = load_student(job.run_folder / "distill" / label)
    folder = job.folder / BUNDLE
    for rest in job.folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(rest, ignore_errors=True)  # of a stage that was stopped before its result
    if folder.exists():
        put_aside(job.folder, [BUNDLE])
    remark = job.arguments.get("remark")
    if remark is not None:
        log(f"  {remark}")
    request = bundle_request(label, student, job.run_folder, job.recipe, settings, remark)
    saved = job.folder / PREDICTIONS
    shutil.rmtree(saved, ignore_errors=True)
    try:
        values, measured = write_bundle(replace(request, predictions=saved), folder)
    finally:
        _drop_predictions_without_file(saved, folder)
    return Outcome({"folder": BUNDLE, **values}, measured)


def _drop_predictions_without_file(saved: Path, bundle: Path) -> None:
    """Keep those of the files that ship alone: an int8 file may have been left out."""
    for path in saved.glob("*.npz"):
        if not (bundle / path.stem).is_file():
            path.unlink()
    if saved.is_dir() and not any(saved.iterdir()):
        saved.rmdir()


def bundle_request(
    label: str,
    student: Student,
    run_folder: Path,
    recipe: Recipe,
    settings: Export,
    remark: str | None = None,
) -> BundleRequest:
    """Collect what the bundle of a run's student needs.

    Args:
        remark: why it is not the recommended student that ships.

    Raises:
        UserError: the student was trained for another recipe than the run's present one.
    """
    trained = run_folder / "distill" / label
    _refuse_other_data(trained, recipe)
    data = dataset_of(recipe)
    require_same_data(trained, student, data)
    section = recipe.data.model_dump(exclude={"root"})
    return BundleRequest(
        name=label,
        student=student,
        data=data,
        data_section={**section, "seed": _subset_seed(recipe)},
        settings=settings,
        remark=remark,
        teacher=_teacher_folder(run_folder),
        latency=recipe.account.latency if recipe.account else None,
        costs=_costs(run_folder, label),
        training=_values(trained),
        teachers=_values(run_folder / "teacher").get("teachers", ()),
    )


def _refuse_other_data(trained: Path, recipe: Recipe) -> None:
    path = trained / "fields.json"
    if not path.is_file():
        return
    before, now = read_json(path).get("data"), recipe.data.model_dump(mode="json", exclude={"root"})
    changed = changed_fields(before, now, "data")
    if changed:
        raise UserError(
            f"{trained} was trained on other data than the run's recipe names now: "
            f"{', '.join(changed)}; run the recipe again first"
        )


def _teacher_folder(run_folder: Path) -> Path | None:
    """The folder of the first teacher, to which the others are related."""
    folder = run_folder / "teacher" / "0"
    return folder if (folder / "teacher.json").is_file() else None


def _subset_seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.data.seed is None else recipe.data.seed


def _values(stage: Path) -> dict[str, Any]:
    """The values of a finished stage, else none."""
    path = stage / "result.json"
    result = read_mapping(path) if path.is_file() else {}
    require_seal(result, path, UNSEALED_RESULT)
    values: dict[str, Any] = result.get("values", {})
    return values


def _costs(run_folder: Path, label: str) -> dict[str, Any] | None:
    """The student's row of `account`, if that has run; all trials are of one size."""
    rows = _values(run_folder / "account").get("networks", [])
    name = re.sub(r"-trial\d+$", "", label)
    matches = (row for row in rows if row["role"] == "deployed" and row["label"] == name)
    return next(matches, None)

"""The fields behind every fingerprint of a run directory: all that a result depends on.

Fields that cannot change a result, such as the device, are not among them. A changed key or value
here makes users train again what they have trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.methods import METHODS
from compress.methods.contract import Terms
from compress.models import user_code
from compress.recipe.schema import Engine, MethodPart, Recipe, TransferPart
from compress.stages.distill import terms_for
from compress.storage.fingerprints import fingerprint_of, fingerprint_of_folder, sha256_file

Fields = dict[str, Any]


def teacher_fields(recipe: Recipe) -> Fields:
    """Fields of the stage `teacher`."""
    return {**_common(recipe), "teacher": [_with_digests(t.model_dump()) for t in recipe.teacher]}


def student_fields(recipe: Recipe, part: MethodPart, trial: int) -> Fields:
    """Fields of a student that one method trains."""
    terms = terms_for(part, recipe.distill)
    return {
        **_common(recipe),
        "trial": trial,
        "student": _with_digests(recipe.student.model_dump()),
        "method": {"name": part.name, **part.arguments},
        "weights": [terms.ce, terms.kd, terms.method],
        "kd_temperature": recipe.distill.kd_temperature if terms.kd else None,
        "train": recipe.distill.train.model_dump(),
        "targets": _targets(recipe.engine) if _reads_teachers(part, terms) else None,
    }


def section_fields(recipe: Recipe, section: str) -> Fields:
    """Fields of a stage that has a section of the recipe of its own."""
    fields = {**_common(recipe), section: getattr(recipe, section).model_dump()}
    if section == "export":
        latency = recipe.account.latency.model_dump() if recipe.account else None
        fields["latency"] = latency
    return fields


def transfer_fields(recipe: Recipe, name: str, part: TransferPart) -> tuple[Fields, Fields]:
    """Fields of a transfer entry's result and of its folder, whose trainings have folders each."""
    entry = {
        "task": part.task,
        "name": name,
        "data": _with_digests(part.data.model_dump()),
        "init": list(part.init),
        "train": part.train.model_dump(),
        **part.arguments,
    }
    common = {key: value for key, value in entry.items() if key not in ("init", "seeds")}
    return {"seed": recipe.seed, "transfer": entry}, {"seed": recipe.seed, "transfer": common}


def command_fields(
    part: TransferPart,
    data: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    inits: Mapping[str, tuple[str, str]],
    seeds: tuple[int, ...],
) -> tuple[Fields, Fields]:
    """Fields of a transfer command's result on one data set, and of its folder.

    Args:
        inits: init -> label of its student, digest of all that it takes from there.
    """
    common = {
        "task": part.task,
        "data": _with_digests(dict(data)),
        "train": part.train.model_dump(),
        "arguments": dict(arguments),
    }
    origins = [[init, *origin] for init, origin in inits.items()]
    return {**common, "init": origins, "seeds": list(seeds)}, common


def result_fields(
    own: Mapping[str, Any],
    *,
    version: int,
    images: str | None = None,
    inputs: Mapping[str, str | None] | None = None,
) -> Fields:
    """Everything that a step's result depends on; without images or inputs, of no recipe.

    Args:
        own: the step's fields.
        version: its stage's RESULT_VERSION.
        images: a digest of the recipe's data.
        inputs: name of each earlier step that it reads -> digest of the result.
    """
    run = {} if images is None else {"images": images, "inputs": dict(inputs or {})}
    return {"version": version, **own, **run}


def training_fields(folder: Mapping[str, Any], *, init: str, origin: str, seed: int) -> Fields:
    """Fields of one training of a transfer entry whose folder has the fields `folder`."""
    # What all have in common too: put aside, the folder lies beside those of other stages.
    return {**folder, "training": {"init": init, "origin": origin, "seed": seed}}


def result_digest(result: Mapping[str, Any]) -> str:
    """A digest of a finished step: what follows depends on its values, not on its fields alone."""
    return fingerprint_of({key: result[key] for key in ("fingerprint", "values")})


def recipe_fingerprint(recipe: Recipe) -> str:
    """Name the recipe in model files; where the data lie does not matter."""
    content = recipe.model_dump(mode="json")
    content["data"].pop("root", None)
    del content["trackers"]
    for how in ("compile", "share_teacher", "cache"):
        del content["engine"][how]
    return fingerprint_of(content)


def _common(recipe: Recipe) -> Fields:
    return {"seed": recipe.seed, "data": recipe.data.model_dump(exclude={"root"})}


def _reads_teachers(part: MethodPart, terms: Terms) -> bool:
    """Whether a method's terms of weight, or its phases, read a teacher."""
    return terms.kd != 0 or bool(METHODS[part.name].teacher_taps)


def _targets(engine: Engine) -> dict[str, str]:
    """What of the engine changes the targets that students learn from."""
    stored = engine.cache.dtype if engine.cache else "float32"
    return {"engine.teacher": engine.teacher, "engine.cache.dtype": stored}


def _with_digests(part: dict[str, Any]) -> dict[str, Any]:
    """Files are known by their content: moving one changes nothing, replacing it does."""
    for key in ("checkpoint", "weights"):
        path = part.get(key)
        if path is not None and Path(path).is_file():
            files = [p for p in (Path(path), Path(path).with_suffix(".json")) if p.is_file()]
            part = {**part, key: [sha256_file(p) for p in files]}
    model = part.get("model")
    if model is not None and user_code.is_user_code(model["name"]):
        part = {**part, "code": user_code.provenance(model["name"])["sha256"]}
    root = part.get("root")
    if root is not None and Path(root).is_dir():
        part = {**part, "root": fingerprint_of_folder(Path(root))}
    return part

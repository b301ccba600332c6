"""The fields behind every fingerprint of a run directory: all that a result depends on.

Fields that cannot change a result, such as the device, are not among them. A changed key or value
here makes users train again what they have trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.models import user_code
from compress.recipe.schema import Engine, MethodPart, Recipe
from compress.run.plan import PlannedStep, RecipePlan, RunPlan
from compress.stages.distill import reads_teachers, terms_for
from compress.storage.fingerprints import fingerprint_of, fingerprint_of_folder, sha256_file
from compress.teacher.settings import arithmetic_name

Fields = dict[str, Any]

# Keys of the recipe that came after the first runs, by section; left out at their default, they
# leave the fingerprints of recipes without them as they were.
_LATER: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    ("data",): {"train_share": None},
    ("export", "int8"): {"flavour": "cpu", "search": False},
    ("export",): {"student": None},
}


@dataclass(frozen=True)
class StepFields:
    """Fields that a step's result depends on, and those that its folder is kept for.

    The latter is less where the parts in the folder know the rest themselves.
    """

    result: Fields
    folder: Fields


def step_fields(
    plan: RunPlan,
    step: PlannedStep,
    *,
    version: int,
    images: str | None = None,
    inputs: Mapping[str, str | None] | None = None,
) -> StepFields:
    """The fields of a step.

    Args:
        version: the RESULT_VERSION of its stage.
        images: a digest of the recipe's data; None without a recipe.
        inputs: name of each earlier step that it reads -> digest of the result.
    """
    if not isinstance(plan, RecipePlan):
        own, folder = _of_command(step)
        return StepFields({"version": version, **own}, {"version": version, **folder})
    recipe = plan.recipe
    read = {"images": images, "inputs": dict(inputs or {})}
    if step.stage == "transfer":
        own, folder = _of_transfer(recipe, step)
        return StepFields({"version": version, **own, **read}, {"version": version, **folder})
    common = {"seed": recipe.seed, "data": recipe.data.model_dump(exclude={"root"})}
    _drop_later_defaults(common)
    fields = {"version": version, **common, **_OF_STAGE[step.stage](recipe, step), **read}
    return StepFields(fields, fields)


def _of_teacher(recipe: Recipe, step: PlannedStep) -> Fields:
    # A gate that is opened after a training changes nothing of the training.
    teachers = (teacher.model_dump(exclude={"allow_chance_level"}) for teacher in recipe.teacher)
    return {"teacher": [_with_digests(teacher) for teacher in teachers]}


def _of_student(recipe: Recipe, step: PlannedStep) -> Fields:
    part: MethodPart = step.arguments["part"]
    terms = terms_for(part, recipe)
    return {
        "trial": step.arguments["trial"],
        "student": _with_digests(recipe.student.model_dump()),
        "method": {"name": part.name, **part.arguments},
        **_code_of(part.name),
        "weights": [terms.ce, terms.kd, terms.method],
        "kd_temperature": recipe.distill.kd_temperature if terms.kd else None,
        "train": recipe.distill.train.model_dump(),
        "targets": _targets(recipe.engine) if reads_teachers(part, recipe) else None,
    }


def _of_section(recipe: Recipe, step: PlannedStep) -> Fields:
    content = {step.name: getattr(recipe, step.name).model_dump()}
    _drop_later_defaults(content)
    return content


def _of_export(recipe: Recipe, step: PlannedStep) -> Fields:
    """Which student it is stands in the step's inputs."""
    latency = recipe.account.latency.model_dump() if recipe.account else None
    section = _of_section(recipe, step)
    section[step.name].pop("student", None)
    # What the bundle says of another student is part of it.
    remark = step.arguments.get("remark")
    return {**section, "latency": latency, **({} if remark is None else {"remark": remark})}


_OF_STAGE: Mapping[str, Callable[[Recipe, PlannedStep], Fields]] = {
    "teacher": _of_teacher,
    "distill": _of_student,
    "fuse": _of_section,
    "account": _of_section,
    "export": _of_export,
}


def _of_transfer(recipe: Recipe, step: PlannedStep) -> tuple[Fields, Fields]:
    """Of a recipe's entry, whose trainings have folders each: of its result, of its folder."""
    arguments = step.arguments
    common = {
        "task": arguments["task"],
        "name": step.name.partition("/")[2],
        "data": _with_digests(arguments["data"]),
        "train": arguments["train"].model_dump(),
        **arguments["arguments"],
    }
    own = {**common, "init": list(arguments["init"]), "seeds": len(arguments["seeds"])}
    return {"seed": recipe.seed, "transfer": own}, {"seed": recipe.seed, "transfer": common}


def _of_command(step: PlannedStep) -> tuple[Fields, Fields]:
    """Of a transfer command's step on one data set, likewise."""
    arguments = step.arguments
    common = {
        "task": arguments["task"],
        "data": _with_digests(dict(arguments["data"])),
        "train": arguments["train"].model_dump(),
        "arguments": dict(arguments["arguments"]),
    }
    origins = [[init, *origin] for init, origin in arguments["origins"].items()]
    return {**common, "init": origins, "seeds": list(arguments["seeds"])}, common


def training_fields(folder: Mapping[str, Any], *, init: str, origin: str, seed: int) -> Fields:
    """Fields of one training of a transfer entry whose folder has the fields `folder`."""
    # What all have in common too: put aside, the folder lies beside those of other stages.
    return {**folder, "training": {"init": init, "origin": origin, "seed": seed}}


def recipe_fingerprint(recipe: Recipe) -> str:
    """Name the recipe in model files; where the data lie does not matter."""
    content = recipe.model_dump(mode="json")
    content["data"].pop("root", None)
    del content["trackers"]
    for how in ("compile", "share_teacher", "cache"):
        del content["engine"][how]
    _drop_later_defaults(content)
    return fingerprint_of(content)


def _drop_later_defaults(content: dict[str, Any]) -> None:
    """Delete the keys of `_LATER` that have their default, in place."""
    for path, defaults in _LATER.items():
        section: Any = content
        for key in path:
            section = section.get(key) if section else None
        for key, default in defaults.items():
            if section and section.get(key) == default:
                del section[key]


def _targets(engine: Engine) -> dict[str, str]:
    """The engine's settings that change the targets that students learn from."""
    stored = engine.cache.dtype if engine.cache else "float32"
    return {"engine.teacher": arithmetic_name(engine.teacher), "engine.cache.dtype": stored}


def _code_of(name: str) -> dict[str, str]:
    """The digest of a method's code, where it is the user's own."""
    own = user_code.needs_trust(name)
    return {"method_code": user_code.provenance(name)["sha256"]} if own else {}


def _with_digests(part: dict[str, Any]) -> dict[str, Any]:
    """Files are known by their content: moving one changes nothing, replacing it does."""
    for key in ("onnx", "outputs"):
        path = part.get(key)
        if path is not None and Path(path).is_file():
            part = {**part, key: sha256_file(Path(path))}
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

"""What a recipe means: its stages in their order, and what each depends on."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import models
from compress.data import DATASETS
from compress.engine.optimization import SCHEDULES
from compress.methods import METHODS
from compress.methods.contract import LossWeights
from compress.models import user_code
from compress.recipe import signatures
from compress.recipe.schema import Engine, MethodPart, Recipe, TransferPart
from compress.stages.distill import terms_for
from compress.storage.fingerprints import fingerprint_of_folder, sha256_file
from compress.teacher.settings import arithmetic_name
from compress.trackers import TRACKERS


@dataclass(frozen=True)
class Step:
    """One planned piece of work.

    `fields` is what its result depends on besides the results of `inputs` (names of earlier
    steps); fields that cannot change a result, such as the device, are not in it. `begun` is what
    its folder is begun for where that is less: the parts in the folder know the rest themselves.
    """

    name: str
    module: str
    arguments: Mapping[str, Any]
    fields: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    begun: Mapping[str, Any] | None = None

    @property
    def stage(self) -> str:
        """`distill` for `distill/kd`."""
        return self.name.partition("/")[0]

    @property
    def version(self) -> int:
        """The stage's RESULT_VERSION; imports the stage."""
        number: int = importlib.import_module(self.module).RESULT_VERSION
        return number


@dataclass
class Plan:
    """The steps of a recipe in their order."""

    recipe: Recipe
    steps: list[Step] = field(default_factory=list)


def labelled(recipe: Recipe) -> dict[str, MethodPart]:
    """The methods of a recipe by label; the first is the one that ships."""
    parts: dict[str, MethodPart] = {}
    for part in (recipe.distill.method, *recipe.distill.compare):
        label = part.label or part.name
        number = 2
        while label in parts:
            label = f"{part.label or part.name}-{number}"
            number += 1
        parts[label] = part
    return parts


def make_plan(recipe: Recipe) -> Plan:
    """The steps of a recipe that has been checked."""
    plan = Plan(recipe)
    data = recipe.data.model_dump(exclude={"root"})
    base = {"seed": recipe.seed, "data": data}
    add = plan.steps.append
    add(
        Step(
            "teacher",
            "compress.stages.teacher",
            {},
            {**base, "teacher": [_with_digests(t.model_dump()) for t in recipe.teacher]},
        )
    )
    parts = labelled(recipe)
    main = next(iter(parts))
    students = []
    for trial in range(recipe.trials):
        for label, part in parts.items():
            name = f"distill/{label}" + (f"-trial{trial}" if trial else "")
            students.append(name)
            terms = terms_for(part, recipe.distill)
            fields = {
                **base,
                "trial": trial,
                "student": _with_digests(recipe.student.model_dump()),
                "method": {"name": part.name, **part.arguments},
                "weights": [terms.ce, terms.kd, terms.method],
                "kd_temperature": recipe.distill.kd_temperature if terms.kd else None,
                "train": recipe.distill.train.model_dump(),
                "targets": _targets(recipe.engine) if reads_teachers(part, terms) else None,
            }
            arguments = {"part": part, "label": label, "trial": trial}
            add(Step(name, "compress.stages.distill", arguments, fields, ("teacher",)))
    everything = ("teacher", *students)
    shared = {"students": students, "label": main}
    if recipe.fuse is not None:
        fields = {**base, "fuse": recipe.fuse.model_dump()}
        add(Step("fuse", "compress.stages.fuse", shared, fields, everything))
    if recipe.account is not None:
        fields = {**base, "account": recipe.account.model_dump()}
        add(Step("account", "compress.stages.account", shared, fields, everything))
    if recipe.export is not None:
        latency = recipe.account.latency.model_dump() if recipe.account else None
        fields = {**base, "export": recipe.export.model_dump(), "latency": latency}
        add(Step("export", "export.stage", shared, fields, (f"distill/{main}",)))
    for name, transfer in _transfer_names(recipe.transfer).items():
        entry = {
            "task": transfer.task,
            "name": name,
            "data": transfer.data.model_dump(),
            "init": list(transfer.init),
            "train": transfer.train,
            **transfer.arguments,
        }
        told = {**entry, "train": transfer.train.model_dump(), "data": _with_digests(entry["data"])}
        fields = {"seed": recipe.seed, "transfer": told}
        together = {key: value for key, value in told.items() if key not in ("init", "seeds")}
        used = {main if i in ("distilled", "scratch") else i for i in transfer.init}
        used = {"none" if label == "alone" else label for label in used}
        teacher = ("teacher",) if "teacher" in used else ()
        inputs = (*teacher, *(f"distill/{label}" for label in parts if label in used))
        begun = {**fields, "transfer": together}
        add(Step(f"transfer/{name}", "eval.transfer.stage", entry, fields, inputs, begun))
    return plan


def reads_teachers(part: MethodPart, terms: LossWeights) -> bool:
    """Whether a method's terms of weight, or its phases, read a teacher."""
    return terms.kd != 0 or bool(METHODS[part.name].teacher_taps)


def _targets(engine: Engine) -> dict[str, str]:
    """What of the engine changes the targets that students learn from."""
    stored = engine.cache.dtype if engine.cache else "float32"
    return {"engine.teacher": arithmetic_name(engine.teacher), "engine.cache.dtype": stored}


def _transfer_names(parts: list[TransferPart]) -> dict[str, TransferPart]:
    names: dict[str, TransferPart] = {}
    for part in parts:
        name, number = part.label or part.task, 2
        while name in names:
            name, number = f"{part.label or part.task}-{number}", number + 1
        names[name] = part
    return names


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


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, with the arguments of every named part."""
    content = Recipe.model_json_schema()
    stage = importlib.import_module("eval.transfer.stage")
    registries: dict[str, tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]] = {
        "data": (DATASETS, ("image_size",)),
        "method": (METHODS, ()),
        "schedule": (SCHEDULES, ()),
        "tracker": (TRACKERS, ()),
        "model": (models.MODELS, ("num_classes",)),
        "transfer": (stage.TASKS, ()),
    }
    content["named_parts"] = {
        kind: {name: signatures.schema(f, supplied=supplied) for name, f in registry.items()}
        for kind, (registry, supplied) in registries.items()
    }
    return content

"""The shape of a recipe, and reading one: YAML file + `--set` -> `Recipe`.

A named part (data set, method, model, optimiser, schedule, transfer task) is a mapping with a
`name` (or `task`) and that part's own arguments beside it; a bare string is short for
`{name: string}`. Whether the name exists and takes these arguments is decided in `plan.py`, by
the signature of what the name stands for.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.errors import UserError

Positive = Annotated[int, Field(gt=0)]


class Part(BaseModel):
    """A section with fixed keys: an unknown key, a wrong type or an impossible value is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Named(BaseModel):
    """`{name: NAME, **arguments}`, or just `NAME`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def arguments(self) -> dict[str, Any]:
        """The part's own arguments, without the keys that every such part has."""
        return dict(self.model_extra or {})


class Data(Named):
    """A data set: its name and own arguments, and what can be asked of any data set."""

    classes: Annotated[int, Field(ge=2)] | None = None
    train_images: Positive | None = None
    test_images: Positive | None = None
    validation: Annotated[int, Field(ge=0)] = 0
    augment: Literal["crop_flip", "crop", "resized_crop", "none"] = "crop_flip"
    image_size: Positive | None = None
    seed: int | None = None


class Train(Part):
    """How a network is trained: the papers' SGD unless said otherwise."""

    epochs: Positive
    lr: Annotated[float, Field(gt=0)]
    batch_size: Positive = 64
    optimizer: Named = Named(name="sgd")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Named = Named(name="multistep")


class Teacher(Part):
    """A teacher: trained here (`train`), read (`checkpoint`) or published (`weights`)."""

    model: Named | None = None
    checkpoint: str | None = None
    weights: str | None = None
    train: Train | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> "Teacher":
        if self.model is None and self.checkpoint is None:
            raise ValueError("names no model; give `model`, or `checkpoint` of a file written here")
        if self.checkpoint is None and self.weights is None and self.train is None:
            raise ValueError("has no weights; give `train`, `checkpoint` or `weights`")
        if self.checkpoint is not None and self.weights is not None:
            raise ValueError("has both `checkpoint` and `weights`; give one of them")
        return self


class StudentPart(Part):
    """The network to be trained, from scratch unless weights (or a file of them) are given."""

    model: Named
    weights: str | None = None


class Weights(Part):
    """Weights of the terms: hard labels, soft targets and the method's own terms."""

    ce: Annotated[float, Field(ge=0)]
    kd: Annotated[float, Field(ge=0)] = 0.0
    method: Annotated[float, Field(ge=0)] = 1.0


class MethodPart(Named):
    """A method with its hyper-parameters; `label` names its results, `weights` overrides."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$")] | None = None
    weights: Weights | None = None


class Distill(Part):
    """The method that is shipped and those that are trained beside it under the same budget."""

    method: MethodPart
    train: Train
    protocol: str = "simkd"
    weights: Weights | None = None
    kd_temperature: Annotated[float, Field(gt=0)] = 4.0
    compare: list[MethodPart] = []


class Fuse(Part):
    """How far the deployed network may be from what was trained, in logits (max abs)."""

    tolerance: Annotated[float, Field(gt=0)] = 1e-3


class Latency(Part):
    """Which batch sizes are timed, and how often."""

    batch_sizes: list[Positive] = [1, 64]
    warmup: Annotated[int, Field(ge=0)] = 3
    rounds: Positive = 20


class Account(Part):
    """What is counted and timed."""

    latency: Latency = Latency()


class Export(Part):
    """The ONNX file and its parity gate (max abs difference of logits, relative to their scale)."""

    opset: Annotated[int, Field(ge=18, le=20)] = 18
    tolerance: Annotated[float, Field(gt=0)] = 1e-3


class TransferPart(BaseModel):
    """A downstream task on the distilled encoder: `{task, data, train, init, **arguments}`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    task: str
    data: Named
    train: Train
    init: Annotated[list[str], Field(min_length=1)] = ["distilled", "scratch"]
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$")] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The task's own arguments."""
        return dict(self.model_extra or {})


class Recipe(Part):
    """A whole recipe. A section given as null is a stage that does not run."""

    seed: int = 0
    trials: Positive = 1
    data: Data
    teacher: Annotated[list[Teacher], Field(min_length=1)]
    student: StudentPart
    distill: Distill
    fuse: Fuse | None = Fuse()
    account: Account | None = Account()
    export: Export | None = Export()
    transfer: list[TransferPart] = []

    @model_validator(mode="before")
    @classmethod
    def _one_teacher_or_many(cls, value: Any) -> Any:
        """`teacher` is one mapping or a list of them; inside there is always a list."""
        if isinstance(value, dict) and isinstance(value.get("teacher"), dict):
            value = {**value, "teacher": [value["teacher"]]}
        if isinstance(value, dict) and value.get("transfer", []) is None:
            value = {**value, "transfer": []}
        return value


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-4` as a number and refuses duplicate keys and tags."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.Inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise UserError(f"line {line}: key {key!r} is no text; put it in quotes")
        if key in seen:
            raise UserError(f"line {line}: key '{key}' stands twice (first in line {seen[key]})")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    line = node.start_mark.line + 1
    raise UserError(f"line {line}: YAML tag '{node.tag}' is not accepted; write plain values")


def _finite(loader: _Loader, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        line = node.start_mark.line + 1
        raise UserError(f"line {line}: {node.value} is no finite number")
    return value


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:float", _finite)
_Loader.add_constructor(None, _refuse_tag)


def parse_yaml(text: str, origin: str) -> Any:
    """Read YAML text; `origin` names it in the message of a `UserError`."""
    try:
        return yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{origin}, {error}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{origin} is not readable as YAML: {detail}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file as it stands, without checking its content."""
    if not path.is_file():
        raise UserError(f"recipe '{path}' not found (looked in {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a recipe is YAML") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        raise UserError(f"{path} is {kind}; a recipe is a mapping with {_keys(Recipe)}")
    return {key: _unshared(value) for key, value in raw.items()}


def _unshared(value: Any) -> Any:
    """A copy in which no part is the same object as another: an alias is read as a value.

    (copy.deepcopy keeps sharing, so `--set` at one place would also change the other.)
    """
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def apply_override(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `--set dotted.path=value`; the value is read as YAML."""
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise UserError(f"--set {assignment}: expected dotted.path=value, as in data.classes=10")
    keys = path.split(".")
    place: Any = raw
    for depth, key in enumerate(keys[:-1]):
        here = ".".join(keys[: depth + 1])
        at: Any = _index(place, key, here) if isinstance(place, list) else key
        held = place[at] if isinstance(place, list) else place.get(at)
        if held is None:
            place[at] = {}
        elif isinstance(held, str):  # the short form of a named part
            place[at] = {"name": held}
        place = place[at]
        if not isinstance(place, dict | list):
            raise UserError(f"--set {path}: {here} is {place!r}, which has no parts")
    value = parse_yaml(text, f"--set {path}")
    if isinstance(place, list):
        place[_index(place, keys[-1], path)] = value
    else:
        place[keys[-1]] = value


def _index(place: Sequence[Any], key: str, here: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise UserError(f"--set {here}: expected one of {len(place)} entries from 0, got '{key}'")
    return int(key)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match and match[0] != name else ""


def _keys(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose keys stand at a location of a recipe."""
    model: type[BaseModel] | None = Recipe
    for key in location:
        if isinstance(key, int) or model is None:
            continue
        field = model.model_fields.get(key)
        models = [m for m in _models_in(field.annotation)] if field else []
        model = models[0] if models else model if field is None else None
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]


def describe_errors(error: ValidationError) -> list[str]:
    """Each problem of a recipe as `path: what is wrong, what was given, what is accepted`."""
    lines = []
    for item in error.errors():
        # Drop what pydantic adds for unions, which is no key of the recipe.
        location = tuple(k for k in item["loc"] if isinstance(k, int) or re.fullmatch(r"\w+", k))
        path = ".".join(map(str, location)) or "recipe"
        if item["type"] == "extra_forbidden":
            model = _model_at(location[:-1])
            known = list(model.model_fields) if model else []
            hint = nearest(str(location[-1]), known)
            lines.append(f"{path}: unknown key; accepted here: {', '.join(known)}{hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing")
        elif item["type"] == "value_error":
            lines.append(f"{path}: {item['ctx']['error']!s}")
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            lines.append(f"{path}: {message}, got {item['input']!r}")
    return list(dict.fromkeys(lines))


def check_shape(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe and its problems: the recipe is None where its shape is wrong."""
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        problems = describe_errors(error)
        if isinstance(raw.get("teacher"), dict):  # it was given without a number
            problems = [
                p.replace("teacher.0.", "teacher.").replace("teacher.0:", "teacher:")
                for p in problems
            ]
        return None, problems


def load_resolved(run_folder: Path) -> Recipe:
    """The resolved recipe of a run directory, every default written out."""
    path = run_folder / "resolved.yaml"
    if not path.is_file():
        raise UserError(f"{run_folder} is no run directory: it has no resolved.yaml")
    recipe, problems = check_shape(read_yaml(path))
    if recipe is None:
        raise UserError(f"{path} was changed by hand: " + "; ".join(problems))
    return recipe

"""The shape of a sweep: methods x pairs x trials in one YAML, each cell an ordinary recipe.

`recipe` is what every cell shares. A pair's teacher is merged into its `teacher`, the student into
its `student` (and the student's `train` into `distill.train`), a method into `distill`.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import nearest
from compress.recipe.schema import MethodPart, Part, Trials, describe_errors
from compress.text import short_repr

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
WITHOUT_LABELS = ("knn", "mutual_knn")  # statistics
_LOGITS_FILES = frozenset({"onnx", "outputs"})  # keys of a teacher that is no network
# Mean, mean and standard deviation, or null where the paper has none.
PaperValue = float | Annotated[list[float], Field(min_length=2, max_length=2)] | None


class Pair(Part):
    """A teacher, or several, and a student by their labels; `label` names several."""

    teacher: str | Annotated[list[str], Field(min_length=1, max_length=100)]
    student: str
    label: Label | None = None

    @property
    def teachers(self) -> list[str]:
        """The labels of its teachers."""
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher

    @property
    def teaching(self) -> str:
        """The teachers in a word."""
        return self.label or "+".join(self.teachers)

    @property
    def name(self) -> str:
        """`resnet32x4-resnet8x4`: names the pair's folder and its column."""
        return f"{self.teaching}-{self.student}"


class SweepMethod(MethodPart):
    """A row of the table: a method of a recipe, and how often it is trained."""

    trials: Trials | None = None


class Sweep(BaseModel):
    """A whole sweep. `paper` holds printed values: a row's name -> one value per pair.

    Without labels `statistic` is knn, by labels that are hidden from training, or mutual_knn, which
    compares a student with its teacher.

    The row of a network that is judged beside a method's is named METHOD/NETWORK.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    title: str
    statistic: Literal["last_epoch", "best_on_test", "knn", "mutual_knn"] = "last_epoch"
    recipe: dict[str, Any]
    teachers: Annotated[dict[Label, dict[str, Any]], Field(min_length=1)]
    students: Annotated[dict[Label, dict[str, Any]], Field(min_length=1)]
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=200)]
    methods: Annotated[list[SweepMethod], Field(min_length=1, max_length=200)]
    paper: dict[str, list[PaperValue]] = {}

    @property
    def protocol(self) -> str:
        """The published weights that hold where a method gives no others."""
        return str((self.recipe.get("distill") or {}).get("protocol", "simkd"))

    @property
    def reference(self) -> str | None:
        """The row that others are compared with: KD's."""
        return next((method.row for method in self.methods if method.name == "kd"), None)

    @property
    def chooses_epochs(self) -> bool:
        """Whether a validation split chooses the epoch that is reported."""
        return bool((self.recipe.get("data") or {}).get("validation"))


@dataclass(frozen=True)
class Cell:
    """A method on a pair."""

    pair: Pair
    method: SweepMethod

    @property
    def name(self) -> str:
        """`resnet32x4-resnet8x4/kd`."""
        return f"{self.pair.name}/{self.method.row}"


@dataclass
class Status:
    """Status of a sweep's runs by name (`teacher T` or a cell's): why not, or finished."""

    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    current: set[str] = field(default_factory=set)


def check_sweep(raw: dict[str, Any]) -> tuple[Sweep | None, list[str]]:
    """The sweep and the problems of its shape; its cells are checked as recipes."""
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        return None, describe_errors(error, Sweep)
    problems = [*_wrong_parts(sweep), *_wrong_statistic(sweep)]
    for i, pair in enumerate(sweep.pairs):
        named = [("teacher", label, sweep.teachers) for label in pair.teachers]
        for kind, label, known in [*named, ("student", pair.student, sweep.students)]:
            if label not in known:
                listed = ", ".join(known)
                hint = nearest(label, known)
                problems.append(f"pairs.{i}.{kind}: '{label}' is not in {kind}s ({listed}){hint}")
    problems += _repeated("pairs", [pair.name for pair in sweep.pairs])
    rows = [method.row for method in sweep.methods]
    problems += _repeated("methods", rows)
    for row, values in sweep.paper.items():
        if row != "teacher" and row.partition("/")[0] not in rows:
            listed = ", ".join(rows)
            hint = nearest(row, rows)
            problems.append(f"paper.{row}: no such row; rows: teacher, {listed}{hint}")
        if len(values) != len(sweep.pairs):
            problems.append(
                f"paper.{row}: one value per pair ({len(sweep.pairs)}), got {len(values)}"
            )
    return (None if problems else sweep), problems


def _wrong_parts(sweep: Sweep) -> list[str]:
    """Problems of parts that cannot be merged into a recipe."""
    distill = sweep.recipe.get("distill")
    parts = {f"recipe.{key}": sweep.recipe.get(key) for key in ("teacher", "student", "distill")}
    if isinstance(distill, dict):
        parts["recipe.distill.train"] = distill.get("train")
    parts |= {f"students.{name}.train": s.get("train") for name, s in sweep.students.items()}
    problems = [
        f"{path}: expected a mapping, got {short_repr(part)}"
        for path, part in parts.items()
        if part is not None and not isinstance(part, dict)
    ]
    if isinstance(distill, dict):
        problems += [
            f"recipe.distill.{key}: stands in methods, one row each; leave it out here"
            for key in ("method", "compare")
            if key in distill
        ]
    names = [*sweep.teachers, *(method.row for method in sweep.methods)]
    problems += [f"'{n}': a label does not end in .yaml" for n in names if n.endswith(".yaml")]
    return problems


def _wrong_statistic(sweep: Sweep) -> list[str]:
    if sweep.recipe.get("task") == "segmentation":
        return [
            "recipe.task: sweeps compare accuracies, not masks; one recipe with `compare` and "
            "`trials` compares students that segment"
        ]
    labels = (sweep.recipe.get("data") or {}).get("labels", True)
    if bool(labels) is not (sweep.statistic in WITHOUT_LABELS):
        return []
    say, listed = ("true", "last_epoch, best_on_test") if labels else ("false", WITHOUT_LABELS)
    known = listed if isinstance(listed, str) else ", ".join(listed)
    return [f"statistic: recipe.data.labels is {say}, so it is one of {known}"]


def _repeated(path: str, names: list[str]) -> list[str]:
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    return [f"{path}: '{name}' stands twice; give one of them another label" for name in twice]


def cells(sweep: Sweep) -> list[Cell]:
    """Every cell, pair by pair."""
    return [Cell(pair, method) for pair in sweep.pairs for method in sweep.methods]


def recipe_of(
    sweep: Sweep,
    pair: Pair,
    methods: list[SweepMethod],
    teacher_files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The recipe of a pair as plain values.

    Args:
        methods: the first ships, the others are compared; a cell has one.
        teacher_files: where each trained teacher lies; None: the recipe trains or reads its own.
    """
    raw = copy.deepcopy(sweep.recipe)
    shared = raw.get("teacher") or {}
    teachers = [_teacher(shared, sweep.teachers[label]) for label in pair.teachers]
    if teacher_files is not None:
        teachers = [
            teacher
            if teacher.keys() & _LOGITS_FILES  # nothing was trained
            else {
                "checkpoint": teacher_files[label],
                **({"taps": teacher["taps"]} if "taps" in teacher else {}),
                **({"preprocessing": "own"} if "preprocessing" in teacher else {}),
            }
            for label, teacher in zip(pair.teachers, teachers, strict=True)
        ]
    raw["teacher"] = teachers[0] if isinstance(pair.teacher, str) else teachers
    student = copy.deepcopy(sweep.students[pair.student])
    changes = student.pop("train", None) or {}
    raw["student"] = _merged(raw.get("student") or {}, student)
    parts = [_part(method) for method in methods]
    distill = {**(raw.get("distill") or {}), "method": parts[0], "compare": parts[1:]}
    distill["train"] = _merged(distill.get("train") or {}, changes)
    raw["distill"] = distill
    trials = methods[0].trials
    return {**raw, "trials": trials} if trials is not None else raw


def _teacher(shared: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    teacher = _merged(shared, entry)
    if entry.keys() & {"checkpoint", *_LOGITS_FILES} and "train" not in entry:
        teacher.pop("train", None)  # it is read as it is
    return teacher


def _part(method: SweepMethod) -> dict[str, Any]:
    plain: dict[str, Any] = method.model_dump(exclude={"trials"}, exclude_none=True)
    return plain


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, part by part."""
    result = dict(copy.deepcopy(dict(base)))
    for key, value in changes.items():
        held = result.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(held, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result

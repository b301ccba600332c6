"""The shape of a recipe.

A named part (data set, method, model, optimiser, schedule, transfer task) is a mapping with a
`name` (or `task`) and that part's own arguments beside it; a bare string is short for
`{name: string}`. Whether the name exists and takes these arguments is decided in `checks.py`, by
the signature of what the name stands for.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from compress.errors import nearest
from compress.text import describe_problem, dotted, is_word

Value = TypeVar("Value")
# Bounds are far above what is of use, and below what would fill a memory or run for years.
_LARGEST = 2**31 - 1  # that of the libraries below, too
_MOST_PROBLEMS = 100
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
Number = Annotated[int, Field(ge=0, le=_LARGEST)]
Seed = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
Epochs = Annotated[int, Field(gt=0, le=1_000_000)]
BatchSize = Annotated[int, Field(gt=0, le=1_000_000)]
Trials = Annotated[int, Field(gt=0, le=1000)]
Rounds = Annotated[int, Field(gt=0, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=1e4)]
Share = Annotated[float, Field(gt=0, le=1e9)]
Scale = Annotated[float, Field(ge=0.05, le=20)]
Augment = Literal[
    "crop_flip", "crop", "resized_crop", "scaled_crop", "moco", "rand_augment", "none"
]
Weight = Annotated[float, Field(ge=0, le=1e9)]


class Grown(BaseModel):
    """A section with keys that recipes of earlier versions have not.

    At their default they are left out of what it is written as, so that a recipe keeps its
    fingerprints.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        fields = type(self).model_fields
        return {k: v for k, v in content.items() if k not in self.later or v != fields[k].default}


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


class Data(Grown, Named):
    """A data set: its name and own arguments, and what can be asked of any data set.

    With `views: K` an image has K different augmented views in all, drawn once, instead of every
    one that the augmentation can make. `train_images` is a class-balanced subset of the training
    split, `train_share` a share of it whose images are drawn at random, whatever their classes.
    Without `labels` there are none, or they are hidden from training: networks give embeddings,
    subsets are drawn at random, and an image folder may be any tree of images.

    Images with masks have training views that are scaled by a factor from `scales[0]` to
    `scales[1]`, cut to `image_size` and, with `flip`, mirrored half of the time. Tests see whole
    images; with `window` in overlapping squares of so many pixels.
    """

    later = ("labels", "scales", "flip", "window")

    labels: bool = True
    classes: Annotated[int, Field(ge=2, le=_LARGEST)] | None = None
    train_images: Positive | None = None
    train_share: Annotated[float, Field(gt=0, le=1)] | None = None
    test_images: Positive | None = None
    validation: Number = 0
    augment: Augment = "crop_flip"
    views: Positive | None = None
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    seed: Seed | None = None
    scales: Annotated[list[Scale], Field(min_length=2, max_length=2)] | None = None
    flip: bool = True
    window: Annotated[int, Field(ge=8, le=8192)] | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> "Data":
        if self.train_images is not None and self.train_share is not None:
            raise ValueError("has both `train_images` and `train_share`; give one of them")
        if self.classes is not None and not self.labels:
            raise ValueError("has `classes` and `labels: false`; without labels there are none")
        if self.scales is not None and self.scales[0] > self.scales[1]:
            raise ValueError("has `scales` that descend; give the smaller factor first")
        return self


class Train(Part):
    """Training of a network: the papers' SGD unless said otherwise.

    `accumulate: P` runs each batch in P parts whose gradients are summed, to need less memory.
    `precision` is that of the networks (autocast); losses are float32 in any case.
    """

    epochs: Epochs
    lr: Rate
    batch_size: BatchSize = 64
    optimizer: Named = Named(name="sgd")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, le=1e4)] = 5e-4
    schedule: Named = Named(name="multistep")
    accumulate: Positive = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


class TapPaths(Part):
    """Taps of a network by dotted module paths; those left out are discovered."""

    stages: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    last_map: str | None = None


class PreprocessingPart(Part):
    """Images that a teacher reads: size in pixels, mean and deviation of RGB values from 0 to 1.

    Those left out are the data's.
    """

    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    mean: Annotated[list[Weight], Field(min_length=3, max_length=3)] | None = None
    std: Annotated[list[Share], Field(min_length=3, max_length=3)] | None = None


class TeacherPart(Grown, Part):
    """A teacher: trained here (`train`), read (`checkpoint`) or published (`weights`).

    It reads images as the data set prepares them, or the same crops in its own `preprocessing`:
    `own` is what its file, torchvision or timm says. `seed` is that of its first weights, by
    default the recipe's plus the teacher's number.

    Without labels a teacher gives embeddings. `head` is the path of the module that is cut off it
    and left out of its file; by default it is the classifier of the architecture, and what files of
    that kind are known to hold beyond the encoder. With `none` nothing is cut off: what the network
    puts out is the embedding, and all of the file is the network's. With `ssl` it is trained here
    from images alone, by a self-supervised method such as moco.

    A teacher may be no network here but a file that gives logits: `onnx` is a model that ONNX
    Runtime runs on the CPU; `outputs` holds logits that were computed elsewhere of every training
    image without augmentation, see `compress.teacher.stored`.

    A teacher that is no better than chance on the test images ends the run, unless
    `allow_chance_level` says to go on with it.
    """

    later = ("preprocessing", "seed", "head", "ssl", "onnx", "outputs", "allow_chance_level")

    model: Named | None = None
    checkpoint: str | None = None
    weights: str | None = None
    taps: TapPaths = TapPaths()
    train: Train | None = None
    preprocessing: Literal["own"] | PreprocessingPart | None = None
    seed: Seed | None = None
    head: Annotated[str, Field(min_length=1)] | None = None
    ssl: Named | None = None
    onnx: str | None = None
    outputs: str | None = None
    allow_chance_level: bool = False

    @property
    def logits_file(self) -> str | None:
        """The file of a teacher that gives logits only."""
        return self.onnx or self.outputs

    @model_validator(mode="after")
    def _has_a_source(self) -> "TeacherPart":
        if self.onnx is not None or self.outputs is not None:
            return self._is_a_file()
        if self.model is None and self.checkpoint is None:
            raise ValueError("names no model; give `model`, or `checkpoint` of a file written here")
        if self.checkpoint is None and self.weights is None and self.train is None:
            raise ValueError("has no weights; give `train`, `checkpoint` or `weights`")
        if self.checkpoint is not None and self.weights is not None:
            raise ValueError("has both `checkpoint` and `weights`; give one of them")
        if self.ssl is not None and self.train is None:
            raise ValueError("has `ssl` and no `train`; give epochs and learning rate")
        return self

    def _is_a_file(self) -> "TeacherPart":
        source = "onnx" if self.onnx is not None else "outputs"
        own = {"onnx", "preprocessing"} if source == "onnx" else {"outputs"}
        fields = type(self).model_fields
        given = (k for k in self.model_fields_set if getattr(self, k) != fields[k].default)
        beside = sorted({*given} - own)
        if beside:
            raise ValueError(
                f"has both `{source}` and `{beside[0]}`; a file that gives logits is read as it is"
            )
        if self.preprocessing == "own":
            raise ValueError(
                "has preprocessing `own`, which an ONNX file does not say; give image_size, mean "
                "and std"
            )
        return self


class StudentPart(Part):
    """The network to be trained, from scratch unless weights (or a file of them) are given."""

    model: Named
    weights: str | None = None
    taps: TapPaths = TapPaths()


class Weights(Part):
    """Weights of the terms: hard labels, soft targets and the method's own terms.

    One that is not given is that of the protocol.
    """

    ce: Weight | None = None
    kd: Weight | None = None
    method: Weight | None = None


def row_of(label: str | None, name: str) -> str:
    """What names the results of a method, see `MethodPart.row`."""
    if label is not None or ":" not in name:
        return label or name
    letters = re.sub("[^a-z0-9_]", "", name.rpartition(":")[2].lower()).strip("_")
    return letters[:64] or "own"


class MethodPart(Named):
    """A method with its hyper-parameters; `label` names its results, `weights` overrides."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$")] | None = None
    weights: Weights | None = None

    @property
    def row(self) -> str:
        """What names its results: the label, or else the name, or that of the user's own class.

        The latter in lower case: `mymethod` of `my_method.py:MyMethod`.
        """
        return row_of(self.label, self.name)


class Distill(Part):
    """The main method, and those that are trained beside it under the same budget."""

    method: MethodPart
    train: Train
    protocol: str = "simkd"
    weights: Weights | None = None
    kd_temperature: Rate = 4.0
    compare: Annotated[list[MethodPart], Field(max_length=200)] = []


class Fuse(Part):
    """Limit of the difference between deployed and trained network, in logits (max abs)."""

    tolerance: Share = 1e-3


class LatencyPart(Part):
    """Which batch sizes are timed, and how often."""

    batch_sizes: Annotated[list[Positive], Field(max_length=100)] = [1, 64]
    warmup: Annotated[int, Field(ge=0, le=100_000)] = 3
    rounds: Rounds = 20


class Account(Part):
    """Costs to count and time."""

    latency: LatencyPart = LatencyPart()


class Int8(Grown, Part):
    """The quantized file: images of the training split to calibrate on, and its gate.

    The gate compares with the trained network, on the validation split where there is one, else on
    the test split: `max_top1_drop` in percentage points, `min_agreement_percent` of the images
    with the same class, `max_difference` of logits relative to the largest one. Of embeddings it
    looks at the cosine of each image's two: `min_mean_cosine` is the least mean, `min_low_cosine`
    the least first percentile. Of networks that segment it looks at pixels: `max_miou_drop` in
    percentage points, and the agreement of those that have a class. A file that exceeds a limit is
    left out of the bundle. A drop of accuracy that is above its limit by less than two standard
    errors (paired, over the images) leaves the file in, with a remark.

    Layers that are left out stay float: the `first`, the `last`, or those of a number, counted from
    1 in the order of the graph, with what lies between them. Weights have 7 bits, right on every
    CPU; with `full_range` 8, right only on CPUs with VNNI or ARM dot product. `flavour` is what the
    file is made for: ONNX Runtime on a CPU (and most other runtimes), or TensorRT, which takes
    symmetric int8 alone. With `search`, other calibration methods and layers left float are tried
    beside the given ones, and what agrees best with the trained network on images that are not the
    test split's is taken.
    """

    later = ("min_mean_cosine", "min_low_cosine", "max_miou_drop")

    calibration_images: Positive = 512
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    max_top1_drop: Weight = 1.0
    min_agreement_percent: Annotated[float, Field(ge=0, le=100)] = 95.0
    max_difference: Annotated[float, Field(gt=0)] = 0.1
    min_mean_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.99
    min_low_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.95
    max_miou_drop: Weight = 1.0
    full_range: bool = False
    leave_out: list[Literal["first", "last"] | Positive] = []
    flavour: Literal["cpu", "tensorrt"] = "cpu"
    search: bool = False


class Export(Part):
    """The bundle and its parity gate (max abs difference of logits, relative to their scale).

    With `raw_pixels` the files take uint8 (N, H, W, 3) and normalise inside. `compile_latency`
    times torch.compile beside the other runtimes, which takes a compiler and some seconds.
    `license` is the model card's, such as apache-2.0. `student` is the label of the one that ships;
    without it the recommended one does.
    """

    student: str | None = None
    opset: Annotated[int, Field(ge=18, le=25)] = 18
    tolerance: Share = 1e-3
    raw_pixels: bool = False
    int8: Int8 | None = Int8()
    compile_latency: bool = True
    license: Annotated[str, Field(pattern=r"^[^\r\n]+$")] | None = None


class TeacherCachePart(Part):
    """Teacher outputs kept on disk under (image, view).

    `max_gb` bounds the file. float16 halves it; its error is measured and printed. `folder` is
    where it lies, by default inside the run directory.
    """

    max_gb: Share = 4.0
    dtype: Literal["float32", "float16"] = "float32"
    folder: str | None = None


class Engine(Part):
    """Execution of the work: compiling, teachers, caches.

    `compile` of networks: `auto` where the run is long enough and there is a compiler. `teacher` is
    the arithmetic of teachers while students learn: bfloat16 and int8 change their targets by
    what is measured and printed. `share_teacher` trains the students of one teacher side by side,
    each batch shown to the teacher once.
    """

    compile: Literal["auto", "always", "never"] = "auto"
    teacher: Literal["float32", "bfloat16", "int8"] = "float32"
    cache: TeacherCachePart | None = None
    share_teacher: bool = False


class TransferTrain(Train):
    """Training of a transfer task: so many passes over its data, or so many steps."""

    epochs: Epochs = 1
    iterations: Positive | None = None

    @model_validator(mode="after")
    def _has_a_length(self) -> "TransferTrain":
        if self.iterations is None and "epochs" not in self.model_fields_set:
            raise ValueError("has no length; give `epochs` or `iterations`")
        return self


# How a task trains where an entry does not say. The linear probe's are those of RRD's released code
# for STL-10 and TinyImageNet, since CRD and DLKD print none.
TRANSFER_TRAIN: dict[str, dict[str, Any]] = {
    "linear_probe": {
        "epochs": 120,
        "lr": 0.05,
        "nesterov": False,
        "schedule": {"name": "multistep", "milestones": [0.25, 0.5, 0.75]},
    },
    "knn": {"epochs": 1, "lr": 1.0},  # nothing is trained
    "neighbours": {"epochs": 1, "lr": 1.0},
    "detection": {"epochs": 12, "lr": 0.01, "batch_size": 8, "weight_decay": 1e-4},
    "segmentation": {"epochs": 30, "lr": 0.01, "batch_size": 8, "schedule": {"name": "poly"}},
}


class TransferPart(BaseModel):
    """A downstream task on the distilled encoder: `{task, data, train, init, **arguments}`.

    Each init is trained with as many `seeds`, the same ones for all: the recipe's and those after.
    In a recipe that also trains the student alone, `init` is by default distilled, alone, scratch.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    task: str
    data: Named
    train: TransferTrain
    init: Annotated[list[str], Field(min_length=1, max_length=200)] = ["distilled", "scratch"]
    seeds: Trials = 1
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _trained_as_usual(cls, value: Any) -> Any:
        """Without `train` the task's own."""
        usual = TRANSFER_TRAIN.get(str(value.get("task"))) if isinstance(value, dict) else None
        return {"train": usual, **value} if usual is not None else value

    @property
    def own_arguments(self) -> dict[str, Any]:
        """The task's own arguments."""
        return dict(self.model_extra or {})

    @property
    def arguments(self) -> dict[str, Any]:
        """The task's own arguments and `seeds`."""
        return {"seeds": self.seeds, **self.own_arguments}


class Recipe(Grown, Part):
    """A whole recipe. A section given as null is a stage that does not run."""

    later = ("task",)

    seed: Seed = 0
    trials: Trials = 1
    task: Literal["classification", "segmentation"] = "classification"
    data: Data
    teacher: Annotated[list[TeacherPart], Field(min_length=1, max_length=100)]
    student: StudentPart
    distill: Distill
    engine: Engine = Engine()
    trackers: Annotated[list[Named], Field(max_length=100)] = []
    fuse: Fuse | None = Fuse()
    account: Account | None = Account()
    export: Export | None = Export()
    transfer: Annotated[list[TransferPart], Field(max_length=200)] = []

    @property
    def methods(self) -> dict[str, MethodPart]:
        """The methods by label; the first is the main one."""
        parts = (self.distill.method, *self.distill.compare)
        return numbered([(part.row, part) for part in parts])

    @property
    def transfer_entries(self) -> dict[str, TransferPart]:
        """The transfer entries by name."""
        return numbered([(part.label or part.task, part) for part in self.transfer])

    @model_validator(mode="before")
    @classmethod
    def _usual_of_segmentation(cls, value: Any) -> Any:
        """Augmentation of images with masks, and weights, where the recipe names none."""
        if _get(value, "task") != "segmentation":
            return value
        data, distill = value.get("data"), value.get("distill")
        if isinstance(data, str):
            data = {"name": data}
        if isinstance(data, dict):
            value = {**value, "data": {"augment": "scaled_crop", **data}}
        if isinstance(distill, dict):
            value = {**value, "distill": {"protocol": "segmentation", **distill}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _compared_with_the_student_alone(cls, value: Any) -> Any:
        """Transfer entries without `init` start from the student alone too, if one is trained."""
        distill, transfer = (_get(value, key) for key in ("distill", "transfer"))
        beside = _get(distill, "compare")
        if not isinstance(transfer, list) or not isinstance(beside, list):
            return value
        labels = [one if isinstance(one, str) else _get(one, "label") or _get(one, "name")
                  for one in beside]  # fmt: skip
        if "none" not in labels:
            return value
        inits = {"init": ["distilled", "alone", "scratch"]}
        entries = [{**inits, **one} if isinstance(one, dict) else one for one in transfer]
        return {**value, "transfer": entries}

    @model_validator(mode="before")
    @classmethod
    def _one_teacher_or_many(cls, value: Any) -> Any:
        """`teacher` is one mapping or a list of them; inside there is always a list."""
        if isinstance(value, dict) and isinstance(value.get("teacher"), dict):
            value = {**value, "teacher": [value["teacher"]]}
        if isinstance(value, dict) and value.get("transfer", []) is None:
            value = {**value, "transfer": []}
        return value


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def numbered(named: list[tuple[str, Value]]) -> dict[str, Value]:
    """Parts by name; a name that stands twice gets a number."""
    parts: dict[str, Value] = {}
    for name, part in named:
        unique, number = name, 2
        while unique in parts:
            unique, number = f"{name}-{number}", number + 1
        parts[unique] = part
    return parts


def _model_at(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose keys stand at a location of a recipe."""
    model: type[BaseModel] | None = root
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


def describe_errors(error: ValidationError, root: type[BaseModel] = Recipe) -> list[str]:
    """Each problem of a recipe, or of what `root` describes.

    As `path: what is wrong, what was given, what is accepted`.
    """
    items = error.errors()
    lines = [_described(item, root) for item in items[:_MOST_PROBLEMS]]
    if len(items) > _MOST_PROBLEMS:
        lines.append(f"and {len(items) - _MOST_PROBLEMS:,} more")
    return list(dict.fromkeys(lines))


def _described(item: ErrorDetails, root: type[BaseModel]) -> str:
    # Drop what pydantic adds for unions, which is no key of the recipe.
    *above, last = item["loc"] or ("recipe",)
    location = [key for key in above if isinstance(key, int) or _is_key(key)]
    is_unknown = item["type"] == "extra_forbidden"
    if is_unknown or isinstance(last, int) or _is_key(last):
        location.append(last)
    path = dotted(*location) or "recipe"
    if is_unknown:
        model = _model_at(tuple(location[:-1]), root)
        known = list(model.model_fields) if model else []
        hint = nearest(str(last), known)
        return f"{path}: {describe_problem(item)}; accepted here: {', '.join(known)}{hint}"
    return f"{path}: {describe_problem(item)}"


def _is_key(part: str) -> bool:
    return is_word(part) and part not in ("float", "int", "str")


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

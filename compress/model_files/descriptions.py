"""The shape of a model file's description: student.json, teacher.json, description.json.

Whoever sends a model file chooses what its description says. `read_description` is the only way in:
what it returns has the shape below, names nothing that this version does not have, reads no other
file, and names code of a user's own only where that is trusted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compress.errors import UserError, nearest
from compress.methods import METHODS, find_method
from compress.model_files.arguments import check_arguments
from compress.models import user_code
from compress.recipe import signatures
from compress.storage.json_files import ClosedSchema, OpenSchema, read_json_checked

FORMAT = 1
# Keys of a description that build a network like the one described.
SOURCE = ("architecture", "code", "method")

_Text = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=1, le=10**12)]
_Width = Annotated[int, Field(ge=1, le=2**24)]
_Classes = Annotated[int, Field(ge=0, le=2**24)]  # 0: no classifier
_Pixels = Annotated[int, Field(ge=1, le=2**14)]


class _Architecture(ClosedSchema):
    name: Annotated[str, Field(min_length=1, max_length=4096)]
    arguments: dict[str, Any]
    head: _Text | None = None


class _Code(ClosedSchema):
    file: _Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Preprocessing(ClosedSchema):
    image_size: _Pixels
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    resize: Annotated[int, Field(ge=0, le=2**14)]
    channels: Literal["RGB"] = "RGB"


class _Map(ClosedSchema):
    path: _Text
    channels: _Width
    height: _Pixels
    width: _Pixels
    stride: _Pixels
    side: Literal["output", "input"] = "output"
    layout: Literal["channels_first", "channels_last", "tokens"] = "channels_first"
    prefix: Annotated[int, Field(ge=0, le=2**14)] = 0


class _Taps(ClosedSchema):
    stages: list[_Map]
    pre_activations: list[_Map]
    last_map: _Map | None
    pooled_width: _Width | None
    classifier: _Text | None
    num_classes: _Width
    stem: _Map | None = None
    logits_map: _Map | None = None
    auxiliary: _Map | None = None
    pooled_norm: _Text | None = None
    heads: list[_Text] = Field(default_factory=list)

    def maps(self) -> list[_Map]:
        """Every map there is."""
        single = (self.last_map, self.stem, self.logits_map, self.auxiliary)
        return [*self.stages, *self.pre_activations, *(one for one in single if one is not None)]


class _Network(ClosedSchema):
    architecture: _Architecture
    code: _Code | None = None
    method: "_Method | None" = None


class _Teacher(ClosedSchema):
    taps: _Taps
    bias: bool
    network: _Network | None = None


class _Method(ClosedSchema):
    name: _Text
    arguments: dict[str, Any]
    student: _Taps
    teachers: list[_Teacher]
    num_classes: _Classes
    train_size: _Count
    batch_size: _Count
    steps_per_epoch: _Count
    epochs: _Count
    code: _Code | None = None

    @model_validator(mode="after")
    def _is_known(self) -> "_Method":
        if user_code.needs_trust(self.name):
            return self  # looked at where its code is trusted
        if self.name not in METHODS:
            hint = nearest(self.name, METHODS)
            raise ValueError(f"method.name '{self.name}' is none of {', '.join(METHODS)}{hint}")
        problems = signatures.check(METHODS[self.name], self.arguments, "method.arguments")
        if problems:
            raise ValueError(problems[0])
        return self


class _Distillation(OpenSchema):
    method: dict[str, Any]
    weights: dict[str, float]

    @model_validator(mode="after")
    def _has_a_name(self) -> "_Distillation":
        if not isinstance(self.method.get("name"), str):
            raise ValueError("distillation.method has no name, which is text")
        return self


class _Interrupted(ClosedSchema):
    after_epoch: _Count
    weights_of_epoch: _Count


class _LogitsOnly(ClosedSchema):
    kind: Literal["onnx", "outputs"]
    file: _Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: _Count
    parameters: Annotated[int, Field(ge=0, le=10**12)] | None = None


class _Description(OpenSchema):
    architecture: _Architecture
    code: _Code | None = None
    num_classes: _Classes
    class_names: list[_Text]
    embedding_width: _Width | None = None
    input_shape: list[int]
    preprocessing: _Preprocessing
    taps: _Taps
    method: _Method | None
    encoder_prefix: _Text | None = None
    fingerprint: _Text
    metrics: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    # A folder may be named by it.
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+ -]{0,99}$")] | None = None
    trained_in: Annotated[str, Field(pattern=r"^phase-[A-Za-z0-9_-]{1,99}$")] | None = None
    distillation: _Distillation | None = None
    interrupted: _Interrupted | None = None
    logits_only: _LogitsOnly | None = None  # of a teacher that is no network

    @model_validator(mode="after")
    def _agrees(self) -> "_Description":
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"num_classes is {self.num_classes}, but class_names has {len(self.class_names)}"
            )
        if (self.embedding_width is None) == (self.num_classes == 0):
            raise ValueError("embedding_width is given where num_classes is 0, and only there")
        if self.encoder_prefix is None and (
            self.method is not None or "encoder_prefix" in self.model_fields_set
        ):
            raise ValueError("encoder_prefix is not given as text")
        size = self.preprocessing.image_size
        if self.input_shape != [3, size, size]:
            raise ValueError(
                f"input_shape is not [3, {size}, {size}], as preprocessing.image_size has it"
            )
        for one in self.taps.maps():
            stride = max(1, round(size / one.height))
            if one.stride != stride:
                raise ValueError(
                    f"taps: '{one.path}' has stride {one.stride}, but {size} pixels to "
                    f"{one.height} are {stride}"
                )
        return self


def read_description(path: Path) -> dict[str, Any]:
    """The description of a model file, safe to build from.

    Raises:
        UserError: it is missing or damaged, or names code that is not trusted or has changed.
    """
    if not path.is_file():
        raise UserError(f"{path} not found; a model file needs its description beside it")
    content = read_json_checked(path, _Description, FORMAT)
    for network in _networks(content):
        architecture = network["architecture"]
        if user_code.needs_trust(architecture["name"]):
            user_code.verify(architecture["name"], network.get("code"), path)
        else:
            check_arguments(architecture["name"], architecture["arguments"], path)
        method = network.get("method")
        if method is not None and user_code.needs_trust(method["name"]):
            user_code.verify(method["name"], method.get("code"), path)
            problems = signatures.check(find_method(method["name"]), method["arguments"], "method")
            if problems:
                raise UserError(f"{path}: {problems[0]}")
    return content


def _networks(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The network described, and those whose layers its method reuses."""
    yield content
    method = content.get("method") or {}
    for teacher in method.get("teachers", []):
        if teacher.get("network") is not None:
            yield from _networks(teacher["network"])

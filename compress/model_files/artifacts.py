"""Self-describing model files: a teacher or student that is rebuilt from its own two files.

`NAME.safetensors` holds the weights under their training names, batch norm unfolded; `NAME.json`
says how to build the network around them. A student's file is the deployed network, so neither
rebuilding it nor cutting out its encoder needs a teacher.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from compress import __version__, models
from compress.data.images import Preprocessing
from compress.distributed.collectives import on_main_process
from compress.engine.checkpoint import (
    PHASE_PREFIX,
    checkpoint_path,
    part_of,
    read_history,
    trained_epoch,
    trained_state,
)
from compress.errors import UserError, nearest
from compress.methods import find_method
from compress.methods.contract import Method, MethodContext, TeacherContext
from compress.model_files.arguments import without_sources
from compress.model_files.descriptions import FORMAT, read_description
from compress.models import user_code
from compress.models.memory import limited_by
from compress.seeding import seeded
from compress.storage.files import read_mapping, read_tensors, write_json, write_tensors
from compress.storage.fingerprints import sha256_file
from compress.storage.integrity import require_seal
from compress.storage.results import require_whole
from compress.taps import MapSpec, TapSpecs, encoder_until
from compress.taps.discovery import switch_off_inplace

_LARGEST_TRIED = 1024  # pixels
# The plain numbers of a method's context.
_NUMBERS = ("num_classes", "train_size", "batch_size", "steps_per_epoch", "epochs")


@dataclass(frozen=True)
class Student:
    """A deployed network in eval mode and its description (the content of `student.json`)."""

    network: nn.Module
    description: dict[str, Any]


class Encoder(nn.Module):
    """A student up to its last map: (N, 3, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(
        self, body: nn.Module, last_map: MapSpec, preprocessing: Preprocessing, matched: float
    ) -> None:
        super().__init__()
        self.body = body
        self.channels = last_map.channels
        self.stride = last_map.stride
        self.preprocessing = preprocessing
        self.matched_percent = matched  # share of the encoder's tensors that were loaded

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features


def describe(
    architecture: Mapping[str, Any],
    specs: TapSpecs,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    metrics: Mapping[str, Any],
    fingerprint: str,
) -> dict[str, Any]:
    """Build the content of a model file's description.

    Args:
        architecture: {"name", "arguments"}, and "head" where one was cut off.
        class_names: none of a network that gives embeddings.
    """
    name = architecture["name"]
    arguments = without_sources(name, architecture["arguments"])
    width = {} if class_names else {"embedding_width": specs.num_classes}
    return {
        "format": FORMAT,
        "architecture": {**architecture, "arguments": arguments},
        "code": user_code.provenance(name) if user_code.is_user_code(name) else None,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        **width,
        "input_shape": [3, preprocessing.image_size, preprocessing.image_size],
        "preprocessing": preprocessing.as_dict(),
        "taps": specs.as_dict(),
        "metrics": dict(metrics),
        "fingerprint": fingerprint,
        "versions": {
            "compress": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    }


def describe_distilled(
    architecture: Mapping[str, Any],
    method: Method,
    named: Mapping[str, Any],
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    weights: Mapping[str, float],
    bare: bool,
    fingerprint: str,
    label: str,
    trial: int = 0,
) -> dict[str, Any]:
    """Describe a student that a method distils, for its file; its metrics are still to come.

    Args:
        named: the method's `name` and arguments.
        weights: those of the terms.
        bare: the student itself ships, without parts of the method.
    """
    arguments = {key: value for key, value in named.items() if key != "name"}
    description = describe(
        architecture,
        method.encoder_taps(),
        class_names,
        preprocessing,
        metrics={},
        fingerprint=fingerprint,
    )
    return description | {
        "label": label,
        "trial": trial,
        "distillation": {
            "method": dict(named),
            "weights": dict(weights),
            **_code_of(named["name"]),
        },
        "method": None if bare else describe_method(method, named["name"], arguments),
        "encoder_prefix": "" if bare else "encoder.",
    }


def describe_method(method: Method, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments and shapes that rebuild a method's deployed network without a teacher."""
    context = method.context
    return {
        "name": name,
        "arguments": dict(arguments),
        "student": context.student.as_dict(),
        "teachers": [
            {"taps": t.taps.as_dict(), "bias": t.bias is not None}
            | ({"network": dict(t.source or {})} if method.copies_teacher else {})
            for t in context.teachers
        ],
        **{key: getattr(context, key) for key in _NUMBERS},
        **_code_of(name),
    }


def _code_of(name: str) -> dict[str, Any]:
    """Place and digest of a method's code, where it is the user's own."""
    return {"code": user_code.provenance(name)} if user_code.needs_trust(name) else {}


def rebuild_method(content: Mapping[str, Any]) -> Method:
    """A method with the shapes it was trained with; its weights are still to be loaded."""
    teachers = []
    for teacher in content["teachers"]:
        taps = TapSpecs.from_dict(teacher["taps"])
        width = taps.pooled_width
        if taps.is_dense and taps.last_map is not None:
            width = taps.last_map.channels
        if not taps.classifiers:
            width = None
        weight = torch.zeros(taps.num_classes, width) if width is not None else None
        bias = torch.zeros(taps.num_classes) if teacher["bias"] else None
        source = teacher.get("network")
        network = _rebuild_teacher(source, taps.num_classes) if source is not None else None
        teachers.append(TeacherContext(taps, weight, bias, network, source))
    context = MethodContext(
        TapSpecs.from_dict(content["student"]),
        tuple(teachers),
        labels=torch.zeros(0, dtype=torch.long),
        **{key: content[key] for key in _NUMBERS},
    )
    try:
        with seeded(0, "method", content["name"]):
            return find_method(content["name"])(context, **content["arguments"])
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"a description's method '{content['name']}' does not fit its taps: {error}"
        ) from error


def load_method_state(method: Method, state: Mapping[str, Tensor]) -> None:
    """Load what a rebuilt method ships with.

    Banks and the like are as long as the training set, which is not here: they are left out.
    """
    own = method.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    method.load_state_dict(fitting, strict=False)


def _rebuild_teacher(source: Mapping[str, Any], num_classes: int) -> nn.Module:
    """A network like a teacher's with random weights, for a method that copies part of it."""
    network = build_plain(source, num_classes=num_classes, role="teacher")
    method = source["method"]
    return rebuild_method(method).ship(network) if method is not None else network


def save(folder: Path, name: str, network: nn.Module, description: Mapping[str, Any]) -> str:
    """Write `name`.safetensors, then `name`.json; returns the SHA-256 of the first."""
    path = folder / f"{name}.safetensors"
    write_tensors(path, network.state_dict())
    write_json(folder / f"{name}.json", dict(description))
    return on_main_process(lambda: sha256_file(path))


def is_described(path: Path) -> bool:
    """Whether a file of weights has a description beside it, as those of this project have."""
    return path.with_suffix(".json").is_file()


def load_description(folder: Path, name: str = "student") -> dict[str, Any]:
    """The description beside a model file, see `compress.model_files.descriptions`."""
    return read_description(folder / f"{name}.json")


def build_plain(
    description: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    seed: int = 0,
    role: str = "student",
    weights: Path | None = None,
) -> nn.Module:
    """The described architecture with random weights and its own classifier.

    Args:
        num_classes: of the classifier, by default as described; 0: none, embeddings.
        weights: the file beside the description; a network that it cannot hold is not built.
    """
    name = description["architecture"]["name"]
    with _limit(name, weights):
        network = models.build(
            name,
            num_classes=description["num_classes"] if num_classes is None else num_classes,
            seed=seed,
            role=role,
            head=description["architecture"].get("head"),
            **without_sources(name, description["architecture"]["arguments"]),
        )
    switch_off_inplace(network)  # as it was when it was tapped
    return network


def _limit(name: str, weights: Path | None) -> AbstractContextManager[None]:
    # Code that is trusted may allocate what it likes.
    return nullcontext() if weights is None or user_code.needs_trust(name) else limited_by(weights)


def load_student(folder: Path, name: str = "student") -> Student:
    """Rebuild a deployed network from `folder`; eval mode, on the CPU.

    Code of a user's own is run only where it is trusted and unchanged, see `models.user_code`.

    Raises:
        UserError: a file is missing, damaged or does not fit its description.
    """
    require_whole(folder, name)
    description = load_description(folder, name)
    if "logits_only" in description:
        raise UserError(
            f"{folder / name}.json describes a teacher that gives logits only, from the file "
            f"'{description['logits_only']['file']}': there is no network that can be built here"
        )
    path = folder / f"{name}.safetensors"
    network = build_plain(description, weights=path)
    if description["method"] is not None:
        with limited_by(path):
            method = rebuild_method(description["method"])
        network = method.ship(network)
    _load_exactly(network, read_tensors(path)[0], path)
    shape = Preprocessing.from_dict(description["preprocessing"]).input_shape
    _require_output(network.eval(), shape, _output_shape(description), str(path))
    return Student(network, description)


def output_width(description: Mapping[str, Any]) -> int:
    """Numbers that a described network gives of an image: a logit per class, or its embedding."""
    width: int = description["num_classes"] or description["embedding_width"]
    return width


def is_dense(description: Mapping[str, Any]) -> bool:
    """Whether a described network gives logits of pixels."""
    return description["taps"].get("logits_map") is not None


def _output_shape(description: Mapping[str, Any]) -> tuple[int, ...]:
    """(K,) or (D,) of an image; of a dense network (K, h, w) at its input shape."""
    logits = TapSpecs.from_dict(description["taps"]).logits_map
    width = output_width(description)
    return (width,) if logits is None else (width, logits.height, logits.width)


def load_unfinished(folder: Path) -> Student:
    """The deployed network of a training that was interrupted, as its last checkpoint has it.

    Its weights are of the last whole epoch, or of the best one where a validation split chooses;
    its description's `metrics` are those of that epoch, and `interrupted` names both.

    Raises:
        UserError: no epoch was finished, or a file is damaged or of another training.
    """
    path = folder / "description.json"
    # What the stage calls the training, see `compress.engine.checkpoint`.
    name = f"distill/{folder.name}" if folder.parent.name == "distill" else None
    with _advice_to_run_again():
        content = read_mapping(path) if path.is_file() else {}
        require_seal(content, path, {*content} - {"digest"})
    description = load_description(folder, path.stem) if content else {}
    training, role = last_training(folder, name, description)
    with _advice_to_run_again():
        history = read_history(training, role)
        state = trained_state(training, role) if history else {}
    if not history or not content:
        raise UserError(f"{training} holds no whole epoch of a student's training yet")
    description.pop("digest", None)
    weights = checkpoint_path(training)
    network = build_plain(description, weights=weights)
    _load_exactly(network, part_of(state, "student."), folder)
    if description["method"] is not None:
        with limited_by(weights):
            method = rebuild_method(description["method"])
        load_method_state(method, part_of(state, "method."))
        network = method.ship(network)
    epoch = trained_epoch(training, history)
    row = history[epoch - 1]
    description["metrics"] = {k: v for k, v in row.items() if "percent" in k}
    description["interrupted"] = {"after_epoch": len(history), "weights_of_epoch": epoch}
    return Student(network.eval(), description)


@contextmanager
def _advice_to_run_again() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; run the recipe again, it goes on from what is whole") from None


def last_training(
    folder: Path, name: str | None, description: Mapping[str, Any]
) -> tuple[Path, str | None]:
    """Folder and role of the training whose checkpoint holds what a student ships.

    Args:
        name: what the stage calls the student, where that is known.
    """
    phase = description.get("trained_in")
    if phase is None:
        return folder, name
    return folder / phase, f"{name} {phase.removeprefix(PHASE_PREFIX)}" if name else None


@torch.no_grad()
def _require_output(
    network: nn.Module, shape: tuple[int, int, int], expected: tuple[int, ...], origin: str
) -> None:
    """Refuse a network whose output for one image is not what its description says.

    Images so large that one is a burden are not tried.
    """
    if shape[1] > _LARGEST_TRIED:
        return
    training = network.training
    try:
        output_shape = tuple(network.eval()(torch.zeros(1, *shape)).shape[1:])
    except Exception as error:  # shapes that no training wrote fail in many ways
        raise UserError(
            f"{origin} does not fit its description: the network cannot run on an image of "
            f"{shape[1]} pixels ({' '.join(str(error).split())})"
        ) from error
    finally:
        network.train(training)
    if output_shape != expected:
        raise UserError(
            f"{origin} does not fit its description: of an image of {shape[1]} pixels the network "
            f"makes {output_shape}, described is {expected}"
        )


def _load_exactly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    wrong = sorted(
        k
        for k in {*own, *state}
        if k not in own or k not in state or own[k].shape != state[k].shape
    )
    if wrong:
        raise UserError(
            f"{path} does not fit its description: {len(wrong)} tensors differ, first "
            f"'{wrong[0]}'{nearest(wrong[0], own)}"
        )
    network.load_state_dict(state)


def encoder_state(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a deployed network's tensors the student's own, under the plain architecture's names."""
    return part_of(state, description.get("encoder_prefix", ""))


def cut_encoder(
    network: nn.Module,
    specs: TapSpecs,
    preprocessing: Preprocessing,
    state: Mapping[str, Tensor],
    origin: str,
) -> Encoder:
    """Load what fits of `state` into a plain network and cut out its encoder.

    The two share their parameters. The encoder's `matched_percent` counts its own tensors alone.

    Args:
        state: under the names of `network`; empty for training from scratch.
        origin: names the source in messages.
    """
    if specs.last_map is None:
        raise UserError(f"{origin} has no last map to cut its encoder at")
    if specs.is_dense:
        raise UserError(f"{origin} segments; transfer takes encoders of what classifies or embeds")
    own = network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    network.load_state_dict(fitting, strict=False)
    last = specs.last_map
    body = encoder_until(network, last)
    expected = (last.channels, last.height, last.width)
    _require_output(body, preprocessing.input_shape, expected, origin)
    needed = body.state_dict().keys()
    matched = 100 * len(needed & fitting.keys()) / len(needed)
    return Encoder(body, specs.last_map, preprocessing, matched)

"""Reading weights from files, whoever wrote them, without executing anything in them."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from compress import models
from compress.console.messages import log
from compress.errors import UserError, in_one_line, nearest
from compress.model_files.weight_checks import check_finite, check_kinds, check_plain
from compress.storage.files import read_tensors
from compress.taps.discovery import discover

# Keys under which training scripts usually wrap the weights.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "teacher")
_SHOWN = 6
# Plain values beside the weights in checkpoints of the CRD repository; none can execute anything.
_PLAIN_VALUES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class Loaded:
    """The outcome of loading: whether the classifier was left out, as its class count differs."""

    classifier_replaced: bool
    classes_in_file: int | None


def published_weights(model: str) -> list[str]:
    """The names of the weights that torchvision publishes for a model."""
    prefix, _, name = model.partition(":")
    if prefix != "torchvision" or name not in torchvision.models.list_models():
        return []
    names = [entry.name for entry in torchvision.models.get_model_weights(name)]
    return [*names, "DEFAULT"] if names else []


def find_state(model: str, weights: str) -> Mapping[str, Tensor]:
    """The weights of a file, or those that torchvision or timm publishes under a name (a download).

    Raises:
        UserError: there are no such weights, or no such architecture.
    """
    builder = models.find(model)
    if Path(weights).is_file():
        return read_state(Path(weights))
    published = published_weights(model)
    try:
        if weights in published:
            entries = torchvision.models.get_model_weights(model.partition(":")[2])
            state: Mapping[str, Tensor] = entries[weights].get_state_dict(progress=True)
            return state
        if model.startswith("timm:") and weights == "DEFAULT":
            return builder(pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not download {model} {weights} ({error}); give a local file instead, such as "
            "resnet18.pth"
        ) from None
    raise UserError(
        f"{model}: weights '{weights}' are neither a file (looked in {Path.cwd()}) nor published "
        f"under that name{nearest(weights, published or ['DEFAULT'])}"
    )


def load_initial(
    network: nn.Module,
    model: str,
    weights: str,
    input_shape: tuple[int, int, int],
    *,
    dense: bool = False,
) -> int | None:
    """Load published weights or a file into a network, whatever the class count of its classifier.

    Args:
        dense: the network segments. Weights of the network that its encoder was cut from go into
            the encoder alone.

    Returns:
        The number of classes in the file where the classifier was left as initialised, else None.
    """
    encoder = getattr(network, "encoder_name", None) if dense else None
    of_encoder = encoder is not None and weights in [*published_weights(encoder), "DEFAULT"]
    state = find_state(encoder if of_encoder and encoder else model, weights)
    if encoder is not None and not is_whole(state):
        load_encoder(network, state, weights)
        return None
    classifiers = discover(network, input_shape, model, dense=dense).classifiers
    loaded = load_state(network, state, classifiers, weights)
    if not loaded.classifier_replaced:
        return None
    own = len(network.state_dict()[f"{classifiers[0]}.weight"])
    log(f"  {model}: classifier of {loaded.classes_in_file} classes replaced by a new one of {own}")
    return loaded.classes_in_file


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of a network that segments, and not of its encoder's origin."""
    return any(key.startswith("encoder.") for key in state)


def load_encoder(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load what a classification network's weights have of the encoder of one that segments.

    A deep stem keeps its own. What is left out of them is logged.

    Raises:
        UserError: tensors of the encoder are missing, or of another shape.
    """
    body = network.get_submodule("encoder")
    own = body.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    new = sorted({*own} - {*fitting})
    stem = ("conv1.", "bn1.", "layer1.0.") if getattr(network, "deep_stem", False) else ()
    if missing := [key for key in new if not key.startswith(stem) or not stem]:
        raise UserError(
            f"{origin} is of another architecture than the encoder: {len(missing)} tensors are "
            f"missing or of another shape: {', '.join(missing[:_SHOWN])}"
            f"{nearest(missing[0], state)}"
        )
    check_kinds(fitting, own, origin)
    body.load_state_dict(fitting, strict=False)
    check_finite({k: v for k, v in body.state_dict().items() if k in fitting}, origin)
    left_out = len({*state} - {*fitting})
    log(f"  encoder: {len(fitting)} tensors of {origin}, {len(new)} new, {left_out} left out")


def read_state(path: Path) -> Mapping[str, Tensor]:
    """A state dict from `.safetensors` or a `torch.save` file, wrappers and prefixes removed.

    Raises:
        UserError: the file is missing or damaged, or holds anything else than plain tensors.
    """
    if not path.is_file():
        raise UserError(f"weights file '{path}' not found (looked in {Path.cwd()})")
    is_safetensors = path.suffix == ".safetensors"
    state = _unwrapped(read_tensors(path)[0] if is_safetensors else _read_torch(path), path)
    check_plain(state, str(path), path.stat().st_size)
    prefixes = (re.match(r"(?:module\.)*", key) for key in state)
    shared = min(match.end() for match in prefixes if match)
    return {key[shared:]: value for key, value in state.items()}


def _read_torch(path: Path) -> Any:
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals(_PLAIN_VALUES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds Python objects, which are never executed here; save the "
            "state_dict alone, with torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:  # a file that is none of torch's fails in many ways
        raise UserError(f"{path} is damaged or truncated: {in_one_line(error)}") from None


def _refuse_compressed(path: Path) -> None:
    """torch writes archives without compression; one that has it can unpack to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, and torch compresses nothing")


def _unwrapped(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict inside of what training scripts wrap around it."""
    outer: set[int] = set()
    while isinstance(content, Mapping) and not _is_state(content):
        if id(content) in outer:
            raise UserError(f"{path} holds no state dict: a mapping in it contains itself")
        outer.add(id(content))
        inner = [content[key] for key in _WRAPPERS if key in content]
        if not inner:
            keys = [str(key) for key in content if isinstance(key, (str, int))]
            raise UserError(
                f"{path} holds no state dict; found {', '.join(keys[:_SHOWN]) or 'nothing'}"
            )
        content = inner[0]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def load_state(
    network: nn.Module,
    state: Mapping[str, Tensor],
    classifier: str | Sequence[str] | None,
    origin: str,
) -> Loaded:
    """Load a state dict; a classifier of another class count is left as initialised.

    Args:
        classifier: path of the network's last linear layer, if it has one; or of several heads.
        origin: names the source in messages.

    Raises:
        UserError: keys are missing, unexpected or of another shape; they are listed. Or a tensor
            holds integers in the place of floating-point values, or is not finite.
    """
    own = network.state_dict()
    heads = [classifier] if isinstance(classifier, str) else [*(classifier or ())]
    weight = f"{heads[0] if heads else None}.weight"
    known = weight in own and weight in state and state[weight].ndim > 0
    in_file = state[weight].shape[0] if known else None
    replaced = (
        in_file is not None
        and state[weight].shape != own[weight].shape
        and state[weight].shape[1:] == own[weight].shape[1:]
    )
    left: set[str] = set()
    if replaced:
        left = {f"{head}.{name}" for head in heads for name in ("weight", "bias")}
        state = {k: v for k, v in state.items() if k not in left}
    if difference := _difference(state, own, left):
        name = type(network).__name__
        raise UserError(f"{origin} is of another architecture than {name}: {difference}")
    check_kinds(state, own, origin)
    network.load_state_dict(state, strict=False)
    # As they are in the network: a large float64 is finite in the file alone.
    check_finite({k: v for k, v in network.state_dict().items() if k in state}, origin)
    return Loaded(classifier_replaced=replaced, classes_in_file=in_file)


def _difference(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], left: Collection[str]
) -> str:
    """Keys and shapes of a file that are not those of the network, but for the keys of `left`.

    Empty where there are none.
    """
    # Older files have no such counter; nothing but momentum=None batch norm reads it.
    missing = sorted(k for k in {*own} - {*state} - {*left} if "num_batches_tracked" not in k)
    unexpected = sorted({*state} - {*own})
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted({*own} & {*state})
        if state[k].shape != own[k].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    details = [
        f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for kind, keys in kinds.items()
        if keys
    ]
    return "; ".join(details) + (nearest(missing[0], unexpected) if missing else "")

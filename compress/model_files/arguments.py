"""The arguments of an architecture in a model file: only what shapes the network.

Its weights come from the file beside the description. An argument that takes others, from a path or
from the network, belongs to the recipe that trained it: `without_sources` leaves it out of what is
written, and `check_arguments` refuses it in what is read.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.models import MODELS, SEGMENTERS
from compress.recipe import signatures

# Under these names libraries take weights from elsewhere.
_SOURCES: Mapping[str, frozenset[str]] = {
    "timm": frozenset(
        {
            *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
            *("pretrained_filter_fn", "pretrained_model_args", "checkpoint_path", "cache_dir"),
        }
    ),
    "torchvision": frozenset({"pretrained", "pretrained_backbone", "weights", "weights_backbone"}),
}
_OWN = ("name", "num_classes", "seed", "role", "builder")  # the builder gets these anyway
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
# The network in a segmentation network; code of a user's own would be run when it is built.
_ENCODER = re.compile(r"(?:(?:torchvision|timm):)?[A-Za-z0-9_.-]{1,64}")
_LARGEST = 2**24


def without_sources(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those that say where a library takes weights from."""
    sources = _sources(name)
    return {key: value for key, value in arguments.items() if key not in sources}


def check_arguments(name: str, arguments: Mapping[str, Any], origin: Path) -> None:
    """Refuse arguments, of an architecture of ours or a library's, that do more than shape it.

    Raises:
        UserError: one reads a file or the network, is no plain value, or is absurdly large.
    """

    def refused(key: str, why: str) -> UserError:
        return UserError(f"{origin} is damaged: architecture.arguments.{key} {why}")

    for key, value in arguments.items():
        if key in _sources(name) and not _is_ignored(name, key, value):
            raise refused(key, "takes weights from elsewhere, those of a model file are its own")
        if key in _OWN:
            raise refused(key, "is no argument of an architecture")
        if name in SEGMENTERS and key == "encoder":
            if not (isinstance(value, str) and _ENCODER.fullmatch(value)):
                raise refused(key, "is no network of ours, torchvision's or timm's")
            continue
        for part in _parts(value):
            if isinstance(part, str) and not _WORD.fullmatch(part):
                raise refused(key, "holds text that is no plain word")
            if isinstance(part, int | float) and not _is_moderate(part):
                raise refused(key, f"holds a number that is larger than {_LARGEST:,}")
    own = {**MODELS, **SEGMENTERS}
    if name in own:
        problems = signatures.check(
            own[name], arguments, "architecture.arguments", supplied=("num_classes",)
        )
        if problems:
            raise UserError(f"{origin} is damaged: {problems[0]}")


def _sources(name: str) -> frozenset[str]:
    return _SOURCES.get(name.partition(":")[0], frozenset())


def _is_ignored(name: str, key: str, value: Any) -> bool:
    """True if leaving the argument out builds the same network; earlier files may have it."""
    return value in (None, False) or (
        name.startswith("timm:") and key == "pretrained" and value is True
    )


def _is_moderate(number: float) -> bool:
    return math.isfinite(number) and abs(number) <= _LARGEST


def _parts(value: Any) -> Iterable[Any]:
    """The values in nested lists and mappings, keys included."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _parts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _parts(one)
    else:
        yield value

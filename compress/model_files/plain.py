"""Plain checkpoints, described as if this project had written them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from compress import models
from compress.data import Preprocessing
from compress.errors import UserError
from compress.model_files.artifacts import describe
from compress.taps import TapSpecs
from compress.taps.discovery import discover

# Our CIFAR networks, and everything else: side in pixels, resized side, normalisation, classes.
_CIFAR = Preprocessing(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256)

State = Mapping[str, Tensor]


def plain_description(model: str, state: State | None, origin: str | None) -> dict[str, Any]:
    """The description of an architecture whose class count is that of its weights.

    Args:
        origin: names the weights in the message if they hold more than the network's tensors;
            None takes those too.
    """
    preprocessing = _CIFAR if model in models.MODELS else _IMAGENET
    classes = 100 if model in models.MODELS else 1000
    specs, shapes = _tapped(model, classes, preprocessing)
    name = f"{next(iter(specs.classifiers), None)}.weight"
    weight = (state or {}).get(name)
    # One of another shape is told when it is loaded.
    if weight is not None and weight.ndim and weight.shape[1:] == shapes.get(name, ())[1:]:
        classes = len(weight)
        specs, shapes = _tapped(model, classes, preprocessing)
    if origin is not None and (extra := sorted({*(state or {})} - {*shapes})):
        raise UserError(
            f"{origin}: {len(extra)} tensors of the file are none of the network's, first "
            f"'{extra[0]}'; it was written for another architecture (--allow-partial leaves them)."
        )
    description = describe(
        {"name": model, "arguments": {}},
        specs,
        tuple(f"class {number}" for number in range(classes)),
        preprocessing,
        metrics={},
        fingerprint="",
    )
    return {**description, "method": None, "encoder_prefix": ""}


@cache
def _tapped(
    model: str, classes: int, preprocessing: Preprocessing
) -> tuple[TapSpecs, Mapping[str, torch.Size]]:
    """Taps and the shapes of the tensors of an architecture."""
    network = models.build(model, num_classes=classes)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return discover(network, preprocessing.input_shape, model), shapes

"""Architectures by name: our CIFAR zoo without a prefix, everything else with one."""

from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from torch import nn

from compress.errors import UserError
from compress.models.cifar_resnet import CIFAR_RESNETS
from compress.randomness import seeded
from compress.recipe import nearest

MODELS: Mapping[str, Callable[..., nn.Module]] = {**CIFAR_RESNETS}


def _torchvision(name: str) -> Callable[..., nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"torchvision has no classification network '{name}'{hint}")
    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    return builder


# What stands before the colon of a model's name -> how the rest is found.
PREFIXES: Mapping[str, Callable[[str], Callable[..., nn.Module]]] = {"torchvision": _torchvision}


def find(name: str) -> Callable[..., nn.Module]:
    """The builder of a named architecture; it takes `num_classes` and its own arguments.

    Raises:
        UserError: there is no such name; names the nearest.
    """
    prefix, colon, rest = name.partition(":")
    if colon:
        if prefix not in PREFIXES:
            accepted = ", ".join(f"{p}:NAME" for p in PREFIXES)
            raise UserError(f"unknown kind of model '{name}'; accepted: a bare name or {accepted}")
        return PREFIXES[prefix](rest)
    if name not in MODELS:
        raise UserError(
            f"unknown model '{name}'; known: {', '.join(MODELS)}, torchvision:NAME"
            f"{nearest(name, [*MODELS, *(f'torchvision:{n}' for n in ('resnet18', 'resnet50'))])}"
        )
    return MODELS[name]


def build(
    name: str, *, num_classes: int, seed: int = 0, role: str = "student", **arguments: Any
) -> nn.Module:
    """Build a network with random weights that depend on (seed, role, name) alone.

    A teacher of the student's own architecture has another role, so it starts elsewhere.
    """
    builder = find(name)
    with seeded(seed, "initialisation", role, name):
        return builder(num_classes=num_classes, **arguments)

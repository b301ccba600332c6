"""Architectures by name: our CIFAR zoo without a prefix, everything else with one.

>>> import torch
>>> from compress.models import build
>>> network = build("resnet8", num_classes=10, seed=0)
>>> network(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import nn

from compress.errors import UserError, nearest
from compress.models import user_code
from compress.models.cifar_resnet import CIFAR_RESNETS
from compress.models.folding import Folded, fold_batchnorm
from compress.models.mobilenet_v2 import MOBILENETS_V2
from compress.models.resnet50_cifar import BOTTLENECK_RESNETS
from compress.models.segmentation.pspnet import pspnet_over
from compress.models.segmentation.published import is_segmenter, published_segmenter
from compress.models.shufflenet_v1 import SHUFFLENETS_V1
from compress.models.shufflenet_v2 import SHUFFLENETS_V2
from compress.models.vgg import VGGS
from compress.models.wide_resnet import WIDE_RESNETS
from compress.seeding import seeded

__all__ = ["MODELS", "SEGMENTERS", "Folded", "build", "cut_head", "find", "fold_batchnorm"]

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    **CIFAR_RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **MOBILENETS_V2,
    **SHUFFLENETS_V1,
    **SHUFFLENETS_V2,
    **BOTTLENECK_RESNETS,
}


def _torchvision(name: str) -> Callable[..., nn.Module]:
    if is_segmenter(name):
        return published_segmenter(name)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"torchvision has no classification or segmentation network '{name}'{hint}")
    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    return builder


def _timm(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"timm:{name} needs timm, which is not installed: pip install 'compress[timm]'"
        ) from None
    if not timm.is_model(name):
        raise UserError(f"timm has no network '{name}'{nearest(name, timm.list_models())}")
    return partial(timm.create_model, name)


# Prefix before the colon of a model's name -> finder of the rest.
PREFIXES: Mapping[str, Callable[[str], Callable[..., nn.Module]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
_FORMS = "a bare name, torchvision:NAME, timm:NAME, package.module:CALLABLE or FILE.py:CALLABLE"


def find(name: str) -> Callable[..., nn.Module]:
    """The builder of a named architecture; it takes `num_classes` and its own arguments.

    Raises:
        UserError: there is no such name; names the nearest.
    """
    prefix, colon, rest = name.partition(":")
    if prefix in PREFIXES and colon:
        return PREFIXES[prefix](rest)
    if user_code.is_user_code(name):
        return user_code.find(name)
    if colon:
        hint = nearest(prefix, PREFIXES)
        raise UserError(f"unknown kind of model '{name}'; accepted: {_FORMS}{hint}")
    if name in SEGMENTERS:
        return SEGMENTERS[name]
    if name not in MODELS:
        known = [*MODELS, *SEGMENTERS]
        hint = nearest(name, [*known, "torchvision:resnet18", "torchvision:resnet50"])
        raise UserError(f"unknown model '{name}'; known: {', '.join(known)}, or {_FORMS}{hint}")
    return MODELS[name]


def _find_encoder(name: str) -> Callable[..., nn.Module]:
    """The builder of a network that another is built over."""
    if user_code.is_user_code(name) or name in SEGMENTERS:
        raise UserError(
            f"encoder '{name}': accepted is a classification network of ours, torchvision's or "
            "timm's; a segmentation network of your own is named whole, as the model"
        )
    return find(name)


# Networks that give a class for every pixel, over the encoder of any of the others.
SEGMENTERS: Mapping[str, Callable[..., nn.Module]] = {"pspnet": pspnet_over(_find_encoder)}


def build(
    name: str,
    *,
    num_classes: int,
    seed: int = 0,
    role: str = "student",
    head: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a network with random weights that depend on (seed, role, name) alone.

    A teacher of the student's own architecture has another role, so it starts elsewhere.

    Args:
        num_classes: 0 is an encoder, images (N, 3, H, W) -> embeddings (N, D): of our zoo and of
            torchvision without the last linear layer; timm and code of a user's own are called with
            0 and give one themselves.
        head: path of a module that is cut off, too.

    Raises:
        UserError: there is no such name, or no such head.
    """
    builder = find(name)
    embeds_itself = name.startswith("timm:") or user_code.is_user_code(name)
    classes = num_classes if num_classes or embeds_itself else 1
    with seeded(seed, "initialisation", role, name):
        network = user_code.call_builder(builder, name, num_classes=classes, **arguments)
    if classes != num_classes:
        cut_head(network, _last_linear(network, name))
    if head is not None:
        cut_head(network, head)
    return network


def cut_head(network: nn.Module, path: str) -> None:
    """Put the identity in the place of a module, in place.

    Raises:
        UserError: there is no such module.
    """
    modules = dict(network.named_modules())
    if not path or path not in modules:
        raise UserError(f"the network has no module '{path}'{nearest(path, modules)}")
    parent, _, name = path.rpartition(".")
    setattr(modules[parent], name, nn.Identity())


def _last_linear(network: nn.Module, name: str) -> str:
    linear: list[str] = [
        path for path, one in network.named_modules() if isinstance(one, nn.Linear)
    ]
    if not linear:
        raise UserError(f"{name} does not end in a linear layer that could be cut off")
    return linear[-1]

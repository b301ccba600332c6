"""Schedules of the learning rate, optimisers, and the settings of a training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


def multistep(
    *,
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875),
    gamma: float = 0.1,
    warmup: float = 0.0,
) -> Callable[[float], float]:
    """Multiply by gamma after each milestone, a share of the run (150, 180, 210 of 240).

    For the first `warmup` of the run it rises on a line from 0.001, as detection's schedules do.
    """
    if not all(0 <= m <= 1 for m in milestones):
        raise ValueError(f"milestones are fractions of the run, from 0 to 1; got {milestones}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the run from 0 to below 1; got {warmup}")

    def factor(progress: float) -> float:
        risen = 1.0 if progress >= warmup else 1e-3 + (1 - 1e-3) * progress / warmup
        return risen * gamma ** sum(progress >= m - 1e-9 for m in milestones)

    return factor


def cosine() -> Callable[[float], float]:
    """Half a cosine from 1 to 0 (SGDR without restarts, Loshchilov & Hutter 2017)."""
    return lambda progress: 0.5 * (1 + math.cos(math.pi * progress))


def poly(*, power: float = 0.9) -> Callable[[float], float]:
    """(1 - progress)^power, usual for segmentation."""
    return lambda progress: (1 - progress) ** power


def constant() -> Callable[[float], float]:
    """The same learning rate throughout."""
    return lambda progress: 1.0


SCHEDULES: Mapping[str, Callable[..., Callable[[float], float]]] = {
    "multistep": multistep,
    "cosine": cosine,
    "poly": poly,
    "constant": constant,
}


def sgd(parameters: list[nn.Parameter], settings: "TrainSettings") -> torch.optim.Optimizer:
    """SGD with momentum, as every paper of the CIFAR protocol uses it."""
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=parameters[0].is_cuda,
    )


def adamw(parameters: list[nn.Parameter], settings: "TrainSettings") -> torch.optim.Optimizer:
    """AdamW with its usual betas; `momentum` and `nesterov` do not apply."""
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], "TrainSettings"], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
}


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training.

    `schedule` maps the share of the run that is done to a factor of `lr`.
    """

    epochs: int
    lr: float
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Callable[[float], float] = field(default_factory=multistep)
    accumulate: int = 1  # parts of a batch that are run one after the other
    precision: str = "float32"  # or bfloat16, float16: of the networks, by autocast

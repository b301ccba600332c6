"""Schedules of the learning rate, optimisers, and the settings of a training."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class OwnOptimizer(Protocol):
    """An optimiser that steps beside the training's own, after the same backward pass."""

    @property
    def name(self) -> str:
        """One of `OWN_OPTIMIZERS`."""
        ...

    @property
    def lr(self) -> float:
        """Its own learning rate."""
        ...

    @property
    def momentum(self) -> float:
        """Of SGD."""
        ...

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam."""
        ...

    @property
    def weight_decay(self) -> float:
        """Its own, 0 for none."""
        ...

    @property
    def scheduled(self) -> bool:
        """Whether the training's schedule multiplies the learning rate."""
        ...


OWN_OPTIMIZERS: Mapping[
    str, Callable[[list[nn.Parameter], OwnOptimizer], torch.optim.Optimizer]
] = {
    "sgd": lambda parameters, own: torch.optim.SGD(
        parameters, lr=own.lr, momentum=own.momentum, weight_decay=own.weight_decay
    ),
    "adam": lambda parameters, own: torch.optim.Adam(
        # Fused, it reads its count of steps on the device.
        parameters,
        lr=own.lr,
        betas=own.betas,
        weight_decay=own.weight_decay,
        fused=True,
    ),
}


class ParameterGroup(Protocol):
    """Parameters with optimiser settings of their own, as a trainable gives them."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Those that do not learn may be among them."""
        ...

    @property
    def lr(self) -> float:
        """A factor of the training's learning rate, whatever its schedule."""
        ...

    @property
    def weight_decay(self) -> float | None:
        """None: the training's."""
        ...

    @property
    def optimizer(self) -> OwnOptimizer | None:
        """One of their own, whose settings take the place of both; None: the training's."""
        ...


@dataclass(frozen=True)
class LearningGroup:
    """The parameters of a group that learn, and its settings; see `ParameterGroup`."""

    parameters: list[nn.Parameter]
    lr: float = 1.0
    weight_decay: float | None = None
    optimizer: OwnOptimizer | None = None

    def rate(self, settings: "TrainSettings", progress: float) -> float:
        """The learning rate after a share of the run."""
        if self.optimizer is None:
            return settings.lr * settings.schedule(progress) * self.lr
        factor = settings.schedule(progress) if self.optimizer.scheduled else 1.0
        return self.optimizer.lr * factor


def grouped(
    parameters: Iterable[nn.Parameter], groups: Iterable[ParameterGroup] = ()
) -> list[LearningGroup]:
    """The parameters that learn: those of no group first, then each group; none is empty.

    Groups with an optimiser of their own are the last.

    Raises:
        ValueError: a parameter is in two groups.
    """
    learning = [p for p in parameters if p.requires_grad]
    known = {id(p) for p in learning}
    named = [
        LearningGroup(
            [p for p in g.parameters if id(p) in known], g.lr, g.weight_decay, g.optimizer
        )
        for g in groups
    ]
    named.sort(key=lambda group: group.optimizer is not None)
    own = [id(p) for group in named for p in group.parameters]
    if len(own) != len({*own}):
        raise ValueError("a parameter is in two groups of the optimiser, or twice in one")
    rest = LearningGroup([p for p in learning if id(p) not in {*own}])
    return [group for group in (rest, *named) if group.parameters]


# One list of parameters, or several with settings of their own, as torch's optimisers take them.
Parameters = list[nn.Parameter] | list[dict[str, Any]]


def sgd(parameters: Parameters, settings: "TrainSettings") -> torch.optim.Optimizer:
    """SGD with momentum, as every paper of the CIFAR protocol uses it."""
    is_fused = _first(parameters).is_cuda
    optimizer = torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=is_fused,
    )
    if is_fused:
        optimizer.register_step_pre_hook(start_momenta_at_zero)
    return optimizer


def start_momenta_at_zero(optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
    """Give each parameter that is about to take its first step a momentum of 0, as a step hook.

    From there the first step is the usual one. Without it torch's fused SGD (2.6 to 2.14) does two
    things wrong. It keeps memory that was never written as momentum where a float16 training's
    first step overflows and is left out: often NaN from the next step on. And it cannot take the
    first step of some parameters with a later one of others, which late parameters need.
    """
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def adamw(parameters: Parameters, settings: "TrainSettings") -> torch.optim.Optimizer:
    """AdamW with its usual betas; `momentum` and `nesterov` do not apply."""
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Parameters, "TrainSettings"], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
}


def make_optimizer(
    groups: Sequence[LearningGroup], settings: "TrainSettings"
) -> torch.optim.Optimizer:
    """The optimiser of `grouped` parameters; of one usual group, as if there were no groups."""
    common = [group for group in groups if group.optimizer is None]
    own = [
        OWN_OPTIMIZERS[g.optimizer.name](g.parameters, g.optimizer)
        for g in groups
        if g.optimizer is not None
    ]
    main = [_main_optimizer(common, settings)] if common else []
    return (main or own)[0] if len(main) + len(own) == 1 else Optimizers([*main, *own])


class Optimizers(torch.optim.Optimizer):
    """Several optimisers that step together, with one state in the order of their parameters."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = tuple(parts)
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and the state of the whole."""
        first = 0
        for part in self._parts:
            end = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:end], self.state
            first = end

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step each of them."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()


def _main_optimizer(
    groups: Sequence[LearningGroup], settings: "TrainSettings"
) -> torch.optim.Optimizer:
    build = OPTIMIZERS[settings.optimizer]
    if len(groups) == 1 and groups[0].lr == 1 and groups[0].weight_decay is None:
        return build(groups[0].parameters, settings)
    several = []
    for group in groups:
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        rate = settings.lr * group.lr
        several.append({"params": group.parameters, "lr": rate, "weight_decay": decay})
    return build(several, settings)


def _first(parameters: Parameters) -> nn.Parameter:
    first = parameters[0]
    return first["params"][0] if isinstance(first, dict) else first


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

"""Places where a network can be tapped, and the table of the kinds of taps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Side = Literal["output", "input"]
Layout = Literal["channels_first", "channels_last", "tokens"]
Place: TypeAlias = tuple[str, str]  # dotted module path, "" for the network itself; side
NETWORK: Place = ("", "output")


@dataclass(frozen=True)
class PathSpec:
    """What a module puts out, as it is."""

    path: str

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place that is read."""
        return ((self.path, "output"),)

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tap of the tensors at `places`."""
        return tensors[0]


@dataclass(frozen=True)
class MapSpec:
    """A feature map: which side of which module, (C, H, W) at the probed input, stride to it.

    `layout` is that of the tensor at this place, from which the tap (N, C, H, W) is made:
    (N, C, H, W), (N, H, W, C), or the `tokens` (N, prefix + H W, C) of patches, row by row, behind
    `prefix` tokens that are of no patch (class, distillation, registers), which the map is without.
    """

    path: str
    channels: int
    height: int
    width: int
    stride: int
    side: Side = "output"
    layout: Layout = "channels_first"
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place that is read."""
        return ((self.path, self.side),)

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The map (N, C, H, W) of the tensor at `places`; tokens are of the probed size alone."""
        (tensor,) = tensors
        if self.layout == "channels_last":
            return tensor.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            patches = tensor[:, self.prefix :] if self.prefix else tensor
            return torch.unflatten(patches.transpose(1, 2), 2, (self.height, self.width))
        return tensor

    def restore(self, maps: Tensor) -> Tensor:
        """The inverse of `read`, of a layout without prefix tokens."""
        if self.layout == "channels_last":
            return maps.permute(0, 2, 3, 1)
        return maps.flatten(2).transpose(1, 2) if self.layout == "tokens" else maps


@dataclass(frozen=True)
class VectorSpec:
    """A vector of `width` numbers per image.

    Those of the same side of the modules `beside` follow that of `path`.
    """

    path: str
    width: int
    side: Side = "output"
    beside: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self.width,)

    @property
    def places(self) -> tuple[Place, ...]:
        """One for each module."""
        return tuple((path, self.side) for path in (self.path, *self.beside))

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The vectors (N, D) of the tensors at `places`."""
        return torch.cat([*tensors], dim=-1) if self.beside else tensors[0]


@dataclass(frozen=True)
class TokensSpec:
    """Tokens (N, L, D), of which the first `prefix` are of no patch."""

    path: str
    length: int
    width: int
    prefix: int
    side: Side = "output"

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, D)."""
        return self.length, self.width

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place that is read."""
        return ((self.path, self.side),)

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tap of the tensors at `places`."""
        return tensors[0]


Spec: TypeAlias = MapSpec | VectorSpec | TokensSpec


@dataclass(frozen=True)
class TapSpecs:
    """The places of one network that can be tapped; None where it has no such place.

    `num_classes` is the width of the output. A network without classifier whose output is an
    embedding (N, D) has `pooled_width` D all the same. One that gives logits of pixels (N, K, h, w)
    has them as `logits_map`; its `classifier` is the 1x1 convolution that makes them, its last map
    what that reads, and `auxiliary` the map from which an auxiliary head may learn the same.

    The spatial mean of the last map is what the classifier reads or, where there is a
    `pooled_norm`, what that layer norm before the classifier reads. A network whose output is the
    mean of several linear layers has them as `heads`, and no `classifier`: `pooled_width` is that
    of all that they read, one after the other.
    """

    stages: tuple[MapSpec, ...]
    pre_activations: tuple[MapSpec, ...]
    last_map: MapSpec | None
    pooled_width: int | None
    classifier: str | None
    num_classes: int
    stem: MapSpec | None = None
    logits_map: MapSpec | None = None
    auxiliary: MapSpec | None = None
    pooled_norm: str | None = None
    heads: tuple[str, ...] = ()

    @property
    def is_dense(self) -> bool:
        """The output is a map of logits (N, K, h, w)."""
        return self.logits_map is not None

    @property
    def output(self) -> str:
        """The kind of the network's output: logits, or pooled of one that embeds."""
        return "pooled" if not self.classifiers and self.pooled_width else "logits"

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The linear layers that make the output: the classifier, or the heads; or none."""
        return (self.classifier,) if self.classifier is not None else self.heads

    def map_at(self, path: str) -> MapSpec | None:
        """The stage map or last map that module `path` puts out."""
        maps = [*self.stages, *([self.last_map] if self.last_map else [])]
        return next((m for m in maps if (m.path, m.side) == (path, "output")), None)

    def of(self, kind: str) -> Spec | tuple[Spec, ...] | None:
        """The place or places of a kind of `KINDS`; None where the network has none."""
        return KINDS[kind].find(self)

    def width(self, kind: str) -> int:
        """Numbers per image of a kind that is one tensor; 0 where the network has none."""
        spec = self.of(kind)
        return 0 if spec is None or isinstance(spec, tuple) else prod(spec.shape)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        # Files of networks without them have no such keys.
        return _without_defaults(
            asdict(self), {"logits_map": None, "auxiliary": None, "pooled_norm": None, "heads": ()}
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TapSpecs":
        """The inverse of `as_dict`."""
        return cls(**{key: _read(value) for key, value in content.items()})


def _without_defaults(content: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping without the keys that came later and are at their default, at any depth."""
    return {key: _plain(value) for key, value in content.items() if later.get(key, _NEVER) != value}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_defaults(value, {"layout": "channels_first", "prefix": 0})
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


_NEVER = object()


def _read(value: Any) -> Any:
    """A value of `as_dict`, with maps as `MapSpec`."""
    if isinstance(value, Mapping):
        return MapSpec(**value)
    return tuple(map(_read, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Kind:
    """A kind of tap: one place (a tensor per forward pass) or several (a list of tensors).

    `lacking` completes "the network has" where a network without such a place cannot be tapped for
    it. Where it is None, the taps of such a network are without the kind.
    """

    find: Callable[[TapSpecs], Spec | tuple[Spec, ...] | None]
    lacking: str | None = None


def _logits(specs: TapSpecs) -> Spec | None:
    if specs.logits_map is not None:
        return specs.logits_map
    return VectorSpec("", specs.num_classes) if specs.output == "logits" else None


def _embedding(specs: TapSpecs) -> Spec | None:
    if specs.is_dense:
        return None
    width = specs.pooled_width or 0
    if not specs.classifiers:
        return VectorSpec("", width) if width else None
    path, *beside = specs.classifiers
    return VectorSpec(path, width, "input", tuple(beside))


def _tokens(specs: TapSpecs) -> tuple[Spec, ...] | None:
    of_tokens = [stage for stage in specs.stages if stage.layout == "tokens"]
    return (
        tuple(
            TokensSpec(m.path, m.prefix + m.height * m.width, m.channels, m.prefix, m.side)
            for m in of_tokens
        )
        or None
    )


# A new kind of tap is a line here; a field of `TapSpecs` and its discovery where no field tells.
KINDS: Mapping[str, Kind] = {
    "logits": Kind(_logits, lacking="no classifier, so it gives no logits"),
    "pooled": Kind(_embedding, lacking="no linear classifier to read from"),
    "last_map": Kind(
        attrgetter("last_map"),
        lacking="no map whose spatial mean its classifier reads; a method that needs the last map "
        "cannot be used with it",
    ),
    "stages": Kind(attrgetter("stages")),
    "pre_activations": Kind(attrgetter("pre_activations")),
    "stem": Kind(attrgetter("stem")),
    "tokens": Kind(_tokens, lacking="no blocks that put out the tokens of patches"),
    "auxiliary": Kind(attrgetter("auxiliary"), lacking="no map for an auxiliary head"),
}

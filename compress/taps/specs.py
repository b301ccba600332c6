"""Places where a network can be tapped, and the table of the kinds of taps."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from operator import attrgetter
from typing import Any, Literal, TypeAlias

Side = Literal["output", "input"]
Place: TypeAlias = tuple[str, str]  # dotted module path, "" for the network itself; side
NETWORK: Place = ("", "output")


@dataclass(frozen=True)
class MapSpec:
    """A feature map: which side of which module, (C, H, W) at the probed input, stride to it."""

    path: str
    channels: int
    height: int
    width: int
    stride: int
    side: Side = "output"

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class VectorSpec:
    """A vector of `width` numbers per image."""

    path: str
    width: int
    side: Side = "output"

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self.width,)


Spec: TypeAlias = MapSpec | VectorSpec


@dataclass(frozen=True)
class TapSpecs:
    """The places of one network that can be tapped; None where it has no such place.

    `num_classes` is the width of the output. A network without classifier whose output is an
    embedding (N, D) has `pooled_width` D all the same. One that gives logits of pixels (N, K, h, w)
    has them as `logits_map`; its `classifier` is the 1x1 convolution that makes them, its last map
    what that reads, and `auxiliary` the map from which an auxiliary head may learn the same.
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

    @property
    def is_dense(self) -> bool:
        """The output is a map of logits (N, K, h, w)."""
        return self.logits_map is not None

    @property
    def output(self) -> str:
        """The kind of the network's output: logits, or pooled of one that embeds."""
        return "pooled" if self.classifier is None and self.pooled_width else "logits"

    def of(self, kind: str) -> Spec | tuple[Spec, ...] | None:
        """The place or places of a kind of `KINDS`; None where the network has none."""
        return KINDS[kind].find(self)

    def width(self, kind: str) -> int:
        """Numbers per image of a kind that is one tensor; 0 where the network has none."""
        spec = self.of(kind)
        return prod(spec.shape) if isinstance(spec, (MapSpec, VectorSpec)) else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        later = ("logits_map", "auxiliary")  # files of networks without them have no such keys
        return {k: v for k, v in asdict(self).items() if k not in later or v is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TapSpecs":
        """The inverse of `as_dict`."""
        return cls(**{key: _read(value) for key, value in content.items()})


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
    if specs.classifier is None:
        return VectorSpec("", width) if width else None
    return VectorSpec(specs.classifier, width, "input")


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
    "auxiliary": Kind(attrgetter("auxiliary"), lacking="no map for an auxiliary head"),
}

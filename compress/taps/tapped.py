"""Named feature taps of any `nn.Module`, with no edit to it; `discovery` finds them.

Kinds: `stages` (the last map of each resolution), `pre_activations` (the same before their
activation), `stem` (the first activated map, where no stage is it already), `tokens` (those of the
stages of a network of tokens, with the tokens that are of no patch), `last_map` (what the
global pooling reads), `pooled` (the embedding, which the classifier reads), `logits`; and the
output of any module by its dotted path. Maps are (N, C, H, W) in whatever layout a network has
them, also those of stages by their paths. A tap is a forward hook that lives for one call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import UserError, nearest
from compress.taps.specs import KINDS, PathSpec, Place, Spec, TapSpecs

Tap: TypeAlias = Tensor | list[Tensor]
One: TypeAlias = Spec | PathSpec


class Taps(dict[str, Tap]):
    """Tensors of one forward pass by kind or dotted path; only what was wanted is there.

    logits (N, K), pooled (N, D), last_map and stem (N, C, H, W), stages and pre_activations: lists
    of maps from fine to coarse, tokens: a list of (N, L, D).
    """

    def tensor(self, kind: str) -> Tensor:
        """The tap of a kind that is one tensor, or of a dotted path."""
        tap = self._tap(kind)
        if not isinstance(tap, Tensor):
            raise ValueError(f"'{kind}' is a list of tensors")
        return tap

    def tensors(self, kind: str) -> list[Tensor]:
        """The taps of a kind that is a list."""
        tap = self._tap(kind)
        if not isinstance(tap, list):
            raise ValueError(f"'{kind}' is one tensor")
        return tap

    def map(self, change: Callable[[Tensor], Tensor]) -> "Taps":
        """The same with every tensor changed."""
        return Taps(
            (kind, [change(t) for t in tap] if isinstance(tap, list) else change(tap))
            for kind, tap in self.items()
        )

    def _tap(self, kind: str) -> Tap:
        if kind not in self:
            raise ValueError(f"'{kind}' was not tapped")
        return self[kind]


class TappedForward(Protocol):
    """A network that returns taps of normalised images (N, 3, H, W)."""

    def __call__(self, images: Tensor) -> Taps: ...


@dataclass(frozen=True)
class TapReader:
    """Makes taps of the tensors of a forward pass: what is read, and which tensor is at a place.

    Several places may be one tensor.
    """

    taps: Mapping[str, One | tuple[One, ...]]
    numbers: Mapping[Place, int]

    @property
    def count(self) -> int:
        """Tensors of a forward pass that are read."""
        return len({*self.numbers.values()})

    def __call__(self, tensors: Sequence[Tensor] | Mapping[int, Tensor]) -> Taps:
        """The taps of one forward pass."""

        def read(spec: One) -> Tensor:
            return spec.read([tensors[self.numbers[place]] for place in spec.places])

        return Taps(
            (kind, [read(one) for one in spec] if isinstance(spec, tuple) else read(spec))
            for kind, spec in self.taps.items()
        )


class Tapped:
    """A network that also returns taps. No `nn.Module`: it adds nothing to the network's state."""

    def __init__(self, network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> None:
        """Tap `wanted`: kinds (see the module's docstring) or dotted module paths.

        Raises:
            UserError: the network has no such module, or no such place.
        """
        self.network = network
        self.specs = specs
        self.wanted = tuple(dict.fromkeys(wanted))
        self.taps = _taps(network, specs, self.wanted)
        modules = dict(network.named_modules())
        ones = chain.from_iterable(t if isinstance(t, tuple) else [t] for t in self.taps.values())
        every = {place for one in ones for place in one.places}
        # The network itself last, whose name is empty.
        self.order = sorted(every, key=lambda place: (not place[0], place))
        for path, _ in self.order:
            if path not in modules:
                raise UserError(f"the network has no module '{path}'{nearest(path, modules)}")
        self._hooked = [(modules[path], side) for path, side in self.order if path]
        self._read = TapReader(self.taps, {place: i for i, place in enumerate(self.order)})

    def with_network(self, network: nn.Module) -> "Tapped":
        """The same taps of another instance of the architecture (a momentum copy)."""
        return Tapped(network, self.specs, self.wanted)

    def __call__(self, images: Tensor) -> Taps:
        """Run the network on normalised images (N, 3, H, W)."""
        seen: dict[int, Tensor] = {}
        handles = [_hook(*place, seen, number) for number, place in enumerate(self._hooked)]
        try:
            seen[len(handles)] = self.network(images)  # the last of `order`, where it is wanted
        finally:
            for handle in handles:
                handle.remove()
        return self._read(seen)


def _taps(
    network: nn.Module, specs: TapSpecs, wanted: Sequence[str]
) -> Mapping[str, One | tuple[One, ...]]:
    """What each wanted tap is; a kind that a network may lack is left out where it does."""
    taps: dict[str, One | tuple[One, ...]] = {}
    for want in wanted:
        if want not in KINDS:
            taps[want] = specs.map_at(want) or PathSpec(want)
            continue
        spec = specs.of(want)
        if spec is not None:
            taps[want] = spec
        elif KINDS[want].lacking is not None:
            raise UserError(f"{type(network).__name__} has {KINDS[want].lacking}")
    return taps


def _hook(module: nn.Module, side: str, seen: dict[int, Tensor], number: int) -> RemovableHandle:
    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[number] = inputs[0]

    def keep_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[number] = output

    if side == "input":
        return module.register_forward_pre_hook(keep_input)
    return module.register_forward_hook(keep_output)

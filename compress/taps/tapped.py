"""Named feature taps of any `nn.Module`, with no edit to it; `discovery` finds them.

Kinds: `stages` (the last map of each resolution), `pre_activations` (the same before their
activation), `stem` (the first activated map, where no stage is it already), `last_map` (what the
global pooling reads), `pooled` (the embedding, which the classifier reads), `logits`; and the
output of any module by its dotted path. A tap is a forward hook that lives for one call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import UserError, nearest
from compress.taps.specs import KINDS, Place, TapSpecs

Tap: TypeAlias = Tensor | list[Tensor]
Places: TypeAlias = Mapping[str, Place | list[Place]]


class Taps(dict[str, Tap]):
    """Tensors of one forward pass by kind or dotted path; only what was wanted is there.

    logits (N, K), pooled (N, D), last_map and stem (N, C, H, W), stages and pre_activations: lists
    of maps from fine to coarse.
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
    """Names the tensors of a forward pass: which of them, by number, is which tap.

    Several taps may be one tensor.
    """

    numbers: Mapping[str, int | list[int]]

    @classmethod
    def of(cls, places: Places, numbers: Mapping[Place, int]) -> "TapReader":
        """Read each place from the tensor of its number."""
        return cls(
            {
                kind: [numbers[p] for p in place] if isinstance(place, list) else numbers[place]
                for kind, place in places.items()
            }
        )

    @property
    def count(self) -> int:
        """Tensors of a forward pass that are read."""
        read = (n if isinstance(n, list) else [n] for n in self.numbers.values())
        return len({number for numbers in read for number in numbers})

    def __call__(self, tensors: Sequence[Tensor] | Mapping[int, Tensor]) -> Taps:
        """The taps of one forward pass."""
        return Taps(
            (kind, [tensors[i] for i in number] if isinstance(number, list) else tensors[number])
            for kind, number in self.numbers.items()
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
        self.places = _places(network, specs, self.wanted)
        modules = dict(network.named_modules())
        every = chain.from_iterable(p if isinstance(p, list) else [p] for p in self.places.values())
        # The network itself last, whose name is empty.
        self.order = sorted(set(every), key=lambda place: (not place[0], place))
        for path, _ in self.order:
            if path not in modules:
                raise UserError(f"the network has no module '{path}'{nearest(path, modules)}")
        self._hooked = [(modules[path], side) for path, side in self.order if path]
        self._read = TapReader.of(self.places, {place: i for i, place in enumerate(self.order)})

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


def _places(network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> Places:
    """The place of each wanted tap; a kind that a network may lack is left out where it does."""
    places: dict[str, Place | list[Place]] = {}
    for want in wanted:
        if want not in KINDS:
            places[want] = (want, "output")
            continue
        spec = specs.of(want)
        if isinstance(spec, tuple):
            places[want] = [(one.path, one.side) for one in spec]
        elif spec is not None:
            places[want] = (spec.path, spec.side)
        elif KINDS[want].lacking is not None:
            raise UserError(f"{type(network).__name__} has {KINDS[want].lacking}")
    return places


def _hook(module: nn.Module, side: str, seen: dict[int, Tensor], number: int) -> RemovableHandle:
    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[number] = inputs[0]

    def keep_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[number] = output

    if side == "input":
        return module.register_forward_pre_hook(keep_input)
    return module.register_forward_hook(keep_output)

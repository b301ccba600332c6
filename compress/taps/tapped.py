"""Named feature taps of any `nn.Module`, with no edit to it; `tap_discovery` finds them.

Kinds: `stages` (the last map of each resolution), `pre_activations` (the same before their
activation), `stem` (the first activated map, where no stage is it already), `last_map` (what the
global pooling reads), `pooled` (what the classifier reads), `logits`; and the output of any module
by its dotted path. A tap is a forward hook that lives for one call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import UserError, nearest


@dataclass(frozen=True)
class MapSpec:
    """A feature map: which side of which module, (C, H, W) at the probed input, stride to it."""

    path: str
    channels: int
    height: int
    width: int
    stride: int
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class TapSpecs:
    """Where a network can be tapped; None where it has no such place."""

    stages: tuple[MapSpec, ...]
    pre_activations: tuple[MapSpec, ...]
    last_map: MapSpec | None
    pooled_width: int | None
    classifier: str | None
    num_classes: int
    stem: MapSpec | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TapSpecs":
        """The inverse of `as_dict`."""
        several = {
            key: tuple(MapSpec(**one) for one in content[key])
            for key in ("stages", "pre_activations")
        }
        single = {
            key: MapSpec(**content[key]) if content.get(key) else None
            for key in ("last_map", "stem")
        }
        return cls(**{**content, **several, **single})


@dataclass
class Taps:
    """What one forward pass showed; a kind that was not asked for is None.

    logits (N, K), pooled (N, D), last_map and stem (N, C, H, W), stages and pre_activations: maps
    from fine to coarse, paths: outputs of the modules asked for by dotted path. `derived` is what a
    method computed from these, under its own names (see `Method.extend`).
    """

    logits: Tensor | None
    pooled: Tensor | None
    last_map: Tensor | None
    stages: list[Tensor] | None
    pre_activations: list[Tensor] | None
    paths: dict[str, Tensor]
    stem: Tensor | None = None
    derived: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Taps":
        """The same with every tensor changed."""

        def one(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        def several(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [change(t) for t in tensors]

        return Taps(
            logits=one(self.logits),
            pooled=one(self.pooled),
            last_map=one(self.last_map),
            stages=several(self.stages),
            pre_activations=several(self.pre_activations),
            paths={path: change(tensor) for path, tensor in self.paths.items()},
            stem=one(self.stem),
            derived={name: change(tensor) for name, tensor in self.derived.items()},
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
        modules = dict(network.named_modules())
        if "last_map" in self.wanted and specs.last_map is None:
            raise UserError(
                f"{type(network).__name__} has no map whose spatial mean its classifier reads; "
                "a method that needs the last map cannot be used with it"
            )
        kinds: dict[str, tuple[MapSpec, ...]] = {
            "logits": (),
            "pooled": (),
            "last_map": (specs.last_map,) if specs.last_map else (),
            "stages": specs.stages,
            "pre_activations": specs.pre_activations,
            "stem": (specs.stem,) if specs.stem else (),
        }
        self._paths = [want for want in self.wanted if want not in kinds]
        sides = {(spec.path, spec.side) for w in self.wanted for spec in kinds.get(w, ())}
        sides |= {(path, "output") for path in self._paths}
        if "pooled" in self.wanted:
            if specs.classifier is None:
                raise UserError(f"{type(network).__name__} has no linear classifier to read from")
            sides.add((specs.classifier, "input"))
        for path, _ in sides:
            if path not in modules:
                raise UserError(f"the network has no module '{path}'{nearest(path, modules)}")
        self._hooked = [(path, side, modules[path]) for path, side in sorted(sides)]

    def with_network(self, network: nn.Module) -> "Tapped":
        """The same taps of another instance of the architecture (a momentum copy)."""
        return Tapped(network, self.specs, self.wanted)

    def __call__(self, images: Tensor) -> Taps:
        """Run the network on normalised images (N, 3, H, W)."""
        seen: dict[tuple[str, str], Tensor] = {}
        handles = [_hook(module, side, seen, path) for path, side, module in self._hooked]
        try:
            logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()

        def maps(kind: str, specs: Sequence[MapSpec]) -> list[Tensor] | None:
            return [seen[s.path, s.side] for s in specs] if kind in self.wanted else None

        def single(kind: str, spec: MapSpec | None) -> Tensor | None:
            return seen[spec.path, spec.side] if spec and kind in self.wanted else None

        pooled = seen[self.specs.classifier or "", "input"] if "pooled" in self.wanted else None
        return Taps(
            logits=logits,
            pooled=pooled,
            last_map=single("last_map", self.specs.last_map),
            stages=maps("stages", self.specs.stages),
            pre_activations=maps("pre_activations", self.specs.pre_activations),
            paths={path: seen[path, "output"] for path in self._paths},
            stem=single("stem", self.specs.stem),
        )


def _hook(
    module: nn.Module, side: str, seen: dict[tuple[str, str], Tensor], path: str
) -> RemovableHandle:
    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[path, "input"] = inputs[0]

    def keep_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[path, "output"] = output

    if side == "input":
        return module.register_forward_pre_hook(keep_input)
    return module.register_forward_hook(keep_output)


def encoder_until(network: nn.Module, path: str) -> fx.GraphModule:
    """The part of a network up to the output of module `path`, sharing its parameters.

    Modules past it (pooling, classifier) are not in the result; names of those before it stay.
    Control flow is fixed as in eval mode: functional dropout is off, modules still follow
    `.train()`.

    Raises:
        UserError: the network's control flow depends on its input, so it cannot be traced; or it
            does not run a module of this path.
    """
    training = network.training
    try:
        graph = fx.Tracer().trace(network.eval())
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        raise UserError(
            f"{type(network).__name__} cannot be cut after '{path}': its forward cannot be "
            f"traced ({error})"
        ) from None
    finally:
        network.train(training)
    nodes = list(graph.nodes)
    inside = [i for i, n in enumerate(nodes) if path in n.meta.get("nn_module_stack", {})]
    if not inside:
        known = dict(network.named_modules())
        raise UserError(
            f"{type(network).__name__} cannot be cut after '{path}', which is no module that its "
            f"forward runs{nearest(path, known)}"
        )
    cut = inside[-1]
    for node in reversed(nodes[cut + 1 :]):
        graph.erase_node(node)
    graph.output(nodes[cut])
    return fx.GraphModule(network, graph, class_name="Encoder")

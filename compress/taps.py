"""Named feature taps of any `nn.Module`, found by running it once, with no edit to it.

Kinds: `stages` (the last map of each resolution), `last_map` (what the global pooling reads),
`pooled` (what the classifier reads), `logits`; and any module by its dotted path. A tap reads the
output of a module through a forward hook that lives for one call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import UserError
from compress.recipe import nearest

_POOLING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class MapSpec:
    """A feature map: module path, (C, H, W) at the probed input, stride against the input."""

    path: str
    channels: int
    height: int
    width: int
    stride: int


@dataclass(frozen=True)
class TapSpecs:
    """Where a network can be tapped."""

    stages: tuple[MapSpec, ...]
    last_map: MapSpec
    pooled_width: int
    classifier: str
    num_classes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TapSpecs":
        """The inverse of `as_dict`."""
        stages = tuple(MapSpec(**stage) for stage in content["stages"])
        return cls(**{**content, "stages": stages, "last_map": MapSpec(**content["last_map"])})


@dataclass
class Taps:
    """What one forward pass showed; a kind that was not asked for is None.

    logits (N, K), pooled (N, D), last_map (N, C, H, W), stages: maps from fine to coarse,
    paths: outputs of the modules asked for by dotted path.
    """

    logits: Tensor
    pooled: Tensor | None
    last_map: Tensor | None
    stages: list[Tensor] | None
    paths: dict[str, Tensor]


class Tapped:
    """A network that also returns taps. No `nn.Module`: it adds nothing to the network's state."""

    def __init__(self, network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> None:
        """Tap `wanted`: kinds (see the module's docstring) or dotted module paths."""
        self.network = network
        self.specs = specs
        self.wanted = tuple(dict.fromkeys(wanted))
        modules = dict(network.named_modules())
        kinds = {
            "logits": (),
            "pooled": (),
            "last_map": (specs.last_map.path,),
            "stages": tuple(stage.path for stage in specs.stages),
        }
        self._paths = {path for want in self.wanted for path in kinds.get(want, (want,))}
        for path in self._paths:
            if path not in modules:
                raise UserError(f"the network has no module '{path}'{nearest(path, modules)}")
        self._modules = {path: modules[path] for path in self._paths}
        self._classifier = modules[specs.classifier] if "pooled" in self.wanted else None

    def with_network(self, network: nn.Module) -> "Tapped":
        """The same taps of another instance of the architecture (a momentum copy)."""
        return Tapped(network, self.specs, self.wanted)

    def __call__(self, images: Tensor) -> Taps:
        """Run the network on normalised images (N, 3, H, W)."""
        seen: dict[str, Tensor] = {}
        pooled: list[Tensor] = []
        handles: list[RemovableHandle] = []
        try:
            for path, module in self._modules.items():
                handles.append(module.register_forward_hook(_keep(seen, path)))
            if self._classifier is not None:
                handles.append(
                    self._classifier.register_forward_pre_hook(
                        lambda _module, inputs: pooled.append(inputs[0])
                    )
                )
            logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        stages = (
            [seen[stage.path] for stage in self.specs.stages] if "stages" in self.wanted else None
        )
        last_map = seen[self.specs.last_map.path] if "last_map" in self.wanted else None
        return Taps(logits, pooled[0] if pooled else None, last_map, stages, seen)


def _keep(seen: dict[str, Tensor], path: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[path] = output

    return hook


def discover(network: nn.Module, input_shape: tuple[int, int, int], name: str) -> TapSpecs:
    """Find the taps by running the network once in eval mode on noise of shape (C, H, W).

    The classifier is the last linear layer whose output is the network's; the last map is the map
    whose spatial mean is what the classifier reads, checked by value. In-place activations are
    switched off, since they would overwrite what a tap reads (results are the same).

    Raises:
        UserError: the network does not end in global average pooling and a linear layer.
    """
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    device = next(network.parameters()).device
    noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    outputs, inputs, logits = _record(network, noise)
    linear = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path in outputs and torch.equal(outputs[path], logits)
    ]
    if not linear:
        raise UserError(f"{name}: no linear layer produces the network's output")
    classifier, pooled = linear[-1], inputs[linear[-1]]
    modules = dict(network.named_modules())
    maps = {
        path: output
        for path, output in outputs.items()
        if output.dim() == 4 and not isinstance(modules[path], _POOLING)
    }
    last = [
        path
        for path, output in maps.items()
        if output.shape[1] == pooled.shape[-1]
        and torch.allclose(output.mean((2, 3)), pooled, rtol=1e-3, atol=1e-5)
    ]
    if not last:
        raise UserError(f"{name}: no feature map's spatial mean is what '{classifier}' reads")
    size = input_shape[1]
    return TapSpecs(
        stages=tuple(_spec(path, maps, size) for path in _stage_paths(network, maps)),
        last_map=_spec(last[0], maps, size),
        pooled_width=pooled.shape[-1],
        classifier=classifier,
        num_classes=logits.shape[-1],
    )


def _record(
    network: nn.Module, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Each module's output and first input, outermost modules first, and the network's output."""
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def hook_for(path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[path] = output
                inputs[path] = given[0]

        return hook

    handles = [m.register_forward_hook(hook_for(p)) for p, m in network.named_modules() if p]
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(images)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    # named_modules order (parents before children): the first of several equal maps is the
    # outermost module, which is the stable name.
    return {p: outputs[p] for p, _ in network.named_modules() if p in outputs}, inputs, logits


def _spec(path: str, maps: Mapping[str, Tensor], size: int) -> MapSpec:
    _, channels, height, width = maps[path].shape
    return MapSpec(path, channels, height, width, max(1, round(size / height)))


def _stage_paths(network: nn.Module, maps: Mapping[str, Tensor]) -> list[str]:
    """The last link of the network's chain of modules at each resolution, fine to coarse."""
    by_size: dict[int, str] = {}
    for path in _chain(network, ""):
        if path in maps:
            by_size[maps[path].shape[-1]] = path
    return list(by_size.values())


def _chain(module: nn.Module, prefix: str) -> Iterator[str]:
    """Direct children, and those of nested containers, in their order; no block is entered."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.Sequential):
            yield from _chain(child, f"{path}.")
        yield path


def encoder_until(network: nn.Module, path: str) -> fx.GraphModule:
    """The part of a network up to the output of module `path`, sharing its parameters.

    Modules past it (pooling, classifier) are not in the result; names of those before it stay.
    Control flow is fixed as in eval mode: functional dropout is off, modules still follow
    `.train()`.

    Raises:
        UserError: the network's control flow depends on its input, so it cannot be traced.
    """
    training = network.training
    try:
        graph = fx.Tracer().trace(network.eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{type(network).__name__} cannot be cut after '{path}': its forward depends on "
            f"its input ({error})"
        ) from None
    finally:
        network.train(training)
    nodes = list(graph.nodes)
    cut = max(i for i, node in enumerate(nodes) if path in node.meta.get("nn_module_stack", {}))
    for node in reversed(nodes[cut + 1 :]):
        graph.erase_node(node)
    graph.output(nodes[cut])
    return fx.GraphModule(network, graph, class_name="Encoder")

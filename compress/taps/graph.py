"""A network cut down to its taps: a graph whose outputs are the wanted taps and nothing else.

Hooks stop torch.compile and make the whole network run; a graph does neither. It is traced with
torch.fx, so a network whose control flow depends on its input has none, and stays with `Tapped`.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from compress.taps import MapSpec, Tapped, Taps, TapSpecs

Place = tuple[str, str]  # dotted module path, and which side of the module: input or output
WHOLE: Place = ("", "output")  # the network itself
KINDS = ("logits", "pooled", "last_map", "stages", "pre_activations", "stem")


class Untraceable(Exception):
    """The network has no graph that shows the wanted taps; the message says why."""


@dataclass(frozen=True)
class Arrangement:
    """Which of a graph's outputs is which tap; several taps may be one output."""

    wanted: tuple[str, ...]
    specs: TapSpecs
    index: Mapping[Place, int]

    def __call__(self, outputs: Sequence[Tensor]) -> Taps:
        """What the graph gave, as taps; a kind that is not wanted is None."""

        def one(path: str, side: str) -> Tensor:
            return outputs[self.index[path, side]]

        def maps(kind: str, specs: Sequence[MapSpec]) -> list[Tensor] | None:
            return [one(s.path, s.side) for s in specs] if kind in wanted else None

        def single(kind: str, spec: MapSpec | None) -> Tensor | None:
            return one(spec.path, spec.side) if spec and kind in wanted else None

        wanted, specs = self.wanted, self.specs
        return Taps(
            logits=one(*WHOLE) if "logits" in wanted else None,
            pooled=one(specs.classifier or "", "input") if "pooled" in wanted else None,
            last_map=single("last_map", specs.last_map),
            stages=maps("stages", specs.stages),
            pre_activations=maps("pre_activations", specs.pre_activations),
            paths={w: one(w, "output") for w in wanted if w not in KINDS},
            stem=single("stem", specs.stem),
        )


class TappedGraph(Tapped):
    """`Tapped` without hooks: equal values, but logits are None unless they are wanted.

    `graph` takes images (N, 3, H, W), gives the tuple that `arranged` makes taps of, and can be
    compiled. It shares the network's parameters and buffers. Its control flow is fixed
    as in the mode that the network was in: functional dropout, and what else reads `self.training`
    in a `forward`; submodules (batch norm, dropout modules) still follow `.train()`. Numbers drawn
    from Python's or NumPy's generator, and constants computed from no input, are fixed too.
    Statistics of batch norms past the last tap stay as they are.
    """

    def __init__(self, network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> None:
        """Trace `network` for `wanted`, as `Tapped` takes them.

        Raises:
            UserError: the network has no such module, or no such place.
            Untraceable: torch.fx cannot trace the network, or not down to a wanted module.
        """
        super().__init__(network, specs, wanted)
        recorder = _recorded(network)
        shown = recorder.shown
        places: list[Place] = [(path, side) for path, side, _ in self._hooked]
        if "logits" in self.wanted:
            places.append(WHOLE)
        for path, side in places:
            if not isinstance(shown.get((path, side)), fx.Proxy):
                raise Untraceable(f"torch.fx does not see the {side} of '{path}'")
        nodes = [shown[place].node for place in places]
        outputs = list(dict.fromkeys(nodes))  # two taps may be one tensor
        index = {place: outputs.index(node) for place, node in zip(places, nodes, strict=True)}
        self.arranged = Arrangement(self.wanted, specs, index)
        called = _called(recorder.graph)
        _cut(recorder.graph, outputs, network)
        gone = called - _called(recorder.graph)
        # Modules that are not run, without those inside another of them.
        self.skipped = sorted(path for path in gone if path.rpartition(".")[0] not in gone)
        self.graph = fx.GraphModule(network, recorder.graph, class_name="TappedGraph")
        recorder.clean()

    def with_network(self, network: nn.Module) -> "TappedGraph":
        """The same taps of another instance of the architecture (a momentum copy)."""
        return TappedGraph(network, self.specs, self.wanted)

    def __call__(self, images: Tensor) -> Taps:
        """Run the network on normalised images (N, 3, H, W), as far as the last wanted tap."""
        return self.arranged(self.graph(images))


class _Recorder(fx.Tracer):
    """A tracer that notes each module's first input and its output, those of the last call."""

    def __init__(self, network: nn.Module, whole: set[str]) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True  # else arithmetic on a buffer would be done just once
        self.whole = whole
        self.failed: str | None = None
        self.shown: dict[Place, Any] = {}
        self._network = network
        self._names = {module: path for path, module in network.named_modules()}
        self._attributes = set(vars(network))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._names[m] in self.whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        path = self._names[m]
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is the first to see the error on its way out.
            self.failed = self.failed or path
            raise
        self.shown[path, "input"] = args[0] if args else None
        self.shown[path, "output"] = output
        return output

    def run(self) -> None:
        """Trace the network; arguments with a default keep it."""
        given = list(inspect.signature(self._network.forward).parameters.values())
        defaults = {p.name: p.default for p in given[1:] if p.default is not p.empty}
        self.graph = self.trace(self._network, defaults or None)
        result = next(iter(reversed(self.graph.nodes))).args[0]
        self.shown[WHOLE] = fx.Proxy(result, self) if isinstance(result, fx.Node) else None

    def clean(self) -> None:
        """Take from the network the constants that tracing left on it."""
        for name in set(vars(self._network)) - self._attributes:
            delattr(self._network, name)


def _recorded(network: nn.Module) -> _Recorder:
    """The traced network; submodules that cannot be traced are single calls in it."""
    whole: set[str] = set()
    while True:
        recorder = _Recorder(network, whole)
        try:
            recorder.run()
            return recorder
        except Exception as error:  # a user's forward may raise anything when it meets a proxy
            recorder.clean()
            if recorder.failed is None or recorder.failed in whole:
                cause = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                raise Untraceable(f"torch.fx cannot trace it ({cause})") from None
            whole.add(recorder.failed)


def _cut(graph: fx.Graph, outputs: Sequence[fx.Node], network: nn.Module) -> None:
    """End the graph at the last of `outputs`, and take out what none of them needs."""
    nodes = list(graph.nodes)
    last = max((nodes.index(node) for node in outputs), default=0)
    for node in reversed(nodes[last + 1 :]):
        graph.erase_node(node)
    graph.output(tuple(outputs))
    graph.eliminate_dead_code(lambda node: _overwrites(node, network))
    for node in graph.find_nodes(op="placeholder")[1:]:
        if not node.users:  # an argument whose default is fixed
            graph.erase_node(node)
    graph.lint()


def _overwrites(node: fx.Node, network: nn.Module) -> bool:
    """Whether a node counts even where nobody reads its value, since it may change another's."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if any(value is True for value in (*node.args, *node.kwargs.values())):
        return True  # `inplace` of a functional activation
    name = str(getattr(node.target, "__name__", node.target))
    in_place = getattr(operator, name, None) is node.target and name[0] == "i"
    return in_place or name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def _called(graph: fx.Graph) -> set[str]:
    """The modules that the graph calls, and all those that they are inside of."""
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            parts = str(node.target).split(".")
            called |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return called

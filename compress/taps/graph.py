"""A network cut down to its taps: a graph whose outputs are the wanted taps and nothing else.

Also cut in two at a module: `encoder_until` is what comes before, `tail_after` what follows. Hooks
stop torch.compile and make the whole network run; a graph does neither. It is traced with
torch.fx, so a network whose control flow depends on its input has none, and stays with `Tapped`.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import relu, relu6

from compress.errors import UserError, nearest
from compress.taps.specs import NETWORK, MapSpec, Place, Side, TapSpecs
from compress.taps.tapped import Tapped, TapReader, Taps


class Untraceable(Exception):
    """The network has no graph that shows the wanted taps; the message says why."""


@dataclass(frozen=True)
class GraphForward:
    """Images (N, 3, H, W) -> taps: `run` gives the graph's outputs, which `read` names."""

    run: Callable[[Tensor], Sequence[Tensor]]
    read: TapReader

    def __call__(self, images: Tensor) -> Taps:
        """Run the graph."""
        return self.read(self.run(images))


class TappedGraph(Tapped):
    """`Tapped` without hooks: equal values, and nothing is run past the last wanted tap.

    `graph` takes images (N, 3, H, W), gives the tuple that `read` makes taps of, and can be
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
        tracer = _trace(network)
        nodes = [tracer.node_at(place) for place in self.order]
        outputs = list(dict.fromkeys(nodes))  # two taps may be one tensor
        numbers = {place: outputs.index(n) for place, n in zip(self.order, nodes, strict=True)}
        self.read = TapReader(self.taps, numbers)
        called = _called(tracer.graph)
        _cut(tracer.graph, outputs, tuple(outputs), network)
        gone = called - _called(tracer.graph)
        # Modules that are not run, without those inside another of them.
        self.skipped = sorted(path for path in gone if path.rpartition(".")[0] not in gone)
        self.graph = fx.GraphModule(network, tracer.graph, class_name="TappedGraph")
        tracer.remove_constants()

    def with_network(self, network: nn.Module) -> "TappedGraph":
        """The same taps of another instance of the architecture (a momentum copy)."""
        return TappedGraph(network, self.specs, self.wanted)

    def __call__(self, images: Tensor) -> Taps:
        """Run the network on normalised images (N, 3, H, W), as far as the last wanted tap."""
        return self.read(self.graph(images))


def encoder_until(
    network: nn.Module, cut: str | MapSpec, *, whole: Collection[str] = ()
) -> fx.GraphModule:
    """The part of a network up to the output of a module, sharing its parameters.

    It gives that as it is where `cut` is the module's path, and (N, C, H, W) where it is a map.

    Modules past it (pooling, classifier) are not in the result; names of those before it stay.
    Control flow is fixed as in eval mode: functional dropout is off, modules still follow
    `.train()`. The modules of `whole` stay single calls, so that hooks see them.

    Raises:
        UserError: the network's control flow depends on its input, so it cannot be traced; or its
            forward runs no module of this path.
    """
    path = cut if isinstance(cut, str) else cut.path
    tracer, node = _trace_to(network, path, whole)
    if isinstance(cut, MapSpec):
        node = map_node(tracer.graph, node, cut)
    _cut(tracer.graph, [node], node, network)
    encoder = fx.GraphModule(network, tracer.graph, class_name="Encoder")
    tracer.remove_constants()
    return encoder


def map_node(graph: fx.Graph, node: fx.Node, spec: MapSpec) -> fx.Node:
    """The value of a node as the map (N, C, H, W) that it is, in a graph that has its nodes."""
    with graph.inserting_before(node.next):  # several nodes, in their order
        return _node_of(spec.read([_proxy(node, graph)]))  # type: ignore[list-item]


def _proxy(node: fx.Node, graph: fx.Graph) -> fx.Proxy:
    return fx.Proxy(node, fx.proxy.GraphAppendingTracer(graph))


def _node_of(value: Any) -> fx.Node:
    node: fx.Node = value.node
    return node


class Tail(nn.Module):
    """A copy of what follows a map in a network: (N, C, H, W) -> the network's output.

    It is frozen and always in eval mode. `is_activated` tells whether a ReLU made the map.
    """

    def __init__(self, body: fx.GraphModule, *, is_activated: bool) -> None:
        super().__init__()
        self.body = body
        self.is_activated = is_activated
        self.requires_grad_(False).eval()

    def forward(self, features: Tensor) -> Tensor:
        """Run what follows."""
        output: Tensor = self.body(features)
        return output

    def train(self, mode: bool = True) -> "Tail":
        """Stay in eval mode: batch norm keeps the statistics that it was copied with."""
        return super().train(False)


def tail_after(network: nn.Module, cut: str | MapSpec) -> Tail:
    """The part of a network that follows the output of a module, as a copy of its own.

    It reads that as it is where `cut` is the module's path, and (N, C, H, W) where it is a map.
    Names of the modules in it stay. Together with `encoder_until` it is the whole network.

    Raises:
        UserError: as for `encoder_until`; or what follows also reads what is before the cut, as a
            skip connection around it does, or reads nothing of it; or it reads tokens of no patch,
            which the map is without.
    """
    spec = cut if isinstance(cut, MapSpec) else None
    path = cut if isinstance(cut, str) else cut.path
    refusal = f"{type(network).__name__} cannot be cut"
    if spec is not None and spec.prefix:
        raise UserError(
            f"{refusal} after '{path}': what follows also reads a class token, or others that are "
            "of no patch, and the map of the patches is without them"
        )
    tracer, node = _trace_to(network, path)
    try:
        graph = _graph_after(tracer.graph, node, refusal, path, spec)
        graph.eliminate_dead_code(lambda node: _overwrites(node, network))
        body = copy.deepcopy(fx.GraphModule(network, graph, class_name="Tail"))
    finally:
        tracer.remove_constants()
    return Tail(body, is_activated=_is_activated(node, network))


def batch_norm_of(network: nn.Module, place: MapSpec) -> nn.BatchNorm2d:
    """The batch norm that makes a map; of the sum of two branches, that of the longer branch.

    Raises:
        UserError: no batch norm makes it, or the network's control flow depends on its input.
    """
    tracer, node = _trace_to(network, place.path, side=place.side)
    tracer.remove_constants()
    if _name_of(node) in ("add", "iadd", "add_"):
        node = max(node.all_input_nodes, key=lambda branch: len(_upstream(branch)))
    made_by = _without_identities(node, network)
    if made_by is None or not isinstance(made_by, nn.BatchNorm2d):
        raise UserError(
            f"no batch norm makes the map at '{place.path}' of {type(network).__name__}"
        )
    return made_by


def _upstream(node: fx.Node) -> set[fx.Node]:
    """A node and all that its value depends on."""
    nodes, new = {node}, {node}
    while new:
        new = {other for one in new for other in one.all_input_nodes} - nodes
        nodes |= new
    return nodes


def _without_identities(node: fx.Node, network: nn.Module) -> nn.Module | None:
    """The module that makes a node's value, if one does."""
    while node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if not isinstance(module, (nn.Identity, nn.Dropout)):
            return module
        node = node.all_input_nodes[0]
    return None


def _graph_after(
    graph: fx.Graph, cut: fx.Node, refusal: str, path: str, spec: MapSpec | None
) -> fx.Graph:
    """A graph from the value of `cut`, or the map that it is, to the output of `graph`."""
    tail = fx.Graph()
    features = tail.placeholder("features")
    if spec is not None:
        features = _node_of(spec.restore(_proxy(features, tail)))  # type: ignore[arg-type]
    copied = {cut: features}
    follows = {cut}
    for node in graph.nodes:
        if node in copied or node.op == "placeholder":
            continue
        read = node.all_input_nodes
        if not follows.isdisjoint(read):
            follows.add(node)
            for other in read:
                if other not in copied:
                    raise UserError(
                        f"{refusal} after '{path}': what follows also reads {_named(other)}, which "
                        "is before the cut or skips it; cut where a whole block ends"
                    )
        if all(other in copied for other in read):  # constants among them
            copied[node] = tail.node_copy(node, copied.__getitem__)
        elif node.op == "output":
            raise UserError(f"{refusal} after '{path}': its output does not depend on that")
    tail.lint()
    return tail


def _named(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the images"
    return f"'{node.target}'" if node.op == "call_module" else f"'{node.name}'"


def _is_activated(node: fx.Node, network: nn.Module) -> bool:
    """Whether a ReLU made the value of a node."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6))
    return node.target in (relu, relu6, torch.relu, torch.relu_, "relu", "relu_")


def _trace_to(
    network: nn.Module, path: str, whole: Collection[str] = (), side: Side = "output"
) -> tuple["_TapTracer", fx.Node]:
    """The network traced in eval mode, and the node of one side of a module."""
    name = type(network).__name__
    training, place = network.training, (path, side)
    try:
        tracer = _trace(network.eval(), whole)
        if place not in tracer.values:
            known = dict(network.named_modules())
            raise UserError(
                f"{name} cannot be cut after '{path}', which is no module that its forward runs"
                f"{nearest(path, known)}"
            )
        return tracer, tracer.node_at(place)
    except Untraceable as reason:
        raise UserError(f"{name} cannot be cut after '{path}': {reason}") from None
    finally:
        network.train(training)


class _TapTracer(fx.Tracer):
    """A tracer that keeps each module's first input and its output, those of the last call."""

    def __init__(self, network: nn.Module, opaque: set[str]) -> None:
        """Trace `network`, whose `opaque` submodules are single calls in the graph."""
        super().__init__()
        self.proxy_buffer_attributes = True  # else arithmetic on a buffer would be done just once
        self.opaque = opaque
        self.failed: str | None = None
        self.values: dict[Place, Any] = {}
        self._network = network
        self._names = {module: path for path, module in network.named_modules()}
        self._attributes = set(vars(network))

    def node_at(self, place: Place) -> fx.Node:
        """The node whose value is the tensor at a place.

        Raises:
            Untraceable: it is inside an opaque module, is not run, or is no tensor.
        """
        value = self.values.get(place)
        if not isinstance(value, fx.Proxy):
            path, side = place
            raise Untraceable(f"torch.fx does not see the {side} of '{path}'")
        return value.node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._names[m] in self.opaque or super().is_leaf_module(m, module_qualified_name)

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
        self.values[path, "input"] = args[0] if args else None
        self.values[path, "output"] = output
        return output

    def run(self) -> None:
        """Trace the network; arguments with a default keep it."""
        parameters = list(inspect.signature(self._network.forward).parameters.values())
        defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        self.graph = self.trace(self._network, defaults or None)
        result = next(iter(reversed(self.graph.nodes))).args[0]
        self.values[NETWORK] = fx.Proxy(result, self) if isinstance(result, fx.Node) else None

    def remove_constants(self) -> None:
        """Take from the network the constants that tracing left on it."""
        for name in set(vars(self._network)) - self._attributes:
            delattr(self._network, name)


def _trace(network: nn.Module, whole: Collection[str] = ()) -> _TapTracer:
    """The traced network; submodules of `whole`, or that cannot be traced, are single calls."""
    opaque = {*whole}
    while True:
        tracer = _TapTracer(network, opaque)
        try:
            tracer.run()
            return tracer
        except Exception as error:  # a user's forward may raise anything when it meets a proxy
            tracer.remove_constants()
            if tracer.failed is None or tracer.failed in opaque:
                cause = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                raise Untraceable(f"torch.fx cannot trace it ({cause})") from None
            opaque.add(tracer.failed)


def _cut(
    graph: fx.Graph, outputs: Sequence[fx.Node], result: fx.node.Argument, network: nn.Module
) -> None:
    """End the graph at the last of `outputs`, return `result`, and drop what none of them needs."""
    nodes = list(graph.nodes)
    last = max((nodes.index(node) for node in outputs), default=0)
    for node in reversed(nodes[last + 1 :]):
        graph.erase_node(node)
    graph.output(result)
    graph.eliminate_dead_code(lambda node: _overwrites(node, network))
    for node in graph.find_nodes(op="placeholder")[1:]:
        if not node.users:  # an argument whose default is fixed
            graph.erase_node(node)
    graph.lint()


def _overwrites(node: fx.Node, network: nn.Module) -> bool:
    """Tell whether a node may change another's value, so that it stays though nobody reads it."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if any(value is True for value in (*node.args, *node.kwargs.values())):
        return True  # `inplace` of a functional activation
    name = _name_of(node)
    in_place = getattr(operator, name, None) is node.target and name[0] == "i"
    return in_place or name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def _name_of(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _called(graph: fx.Graph) -> set[str]:
    """The modules that the graph calls, and all those that they are inside of."""
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            parts = str(node.target).split(".")
            called |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return called

"""Fold batch norm into the convolution before it, as a function from network to network.

In eval mode a batch norm is y = (x - mean) / sqrt(var + eps) * scale + shift per channel, which a
preceding convolution can do itself with other weights and bias. A deployed network is folded;
one that is stored and trained further is not.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Exact classes: a subclass may do more than normalise (timm's BatchNormAct2d also activates).
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Folded:
    """The folded network (eval mode), and which batch norms were folded, by their old path."""

    network: nn.Module
    folded: list[str] = field(default_factory=list)
    not_folded: list[dict[str, str]] = field(default_factory=list)


class _FoldingTracer(fx.Tracer):
    """A tracer that keeps the given modules whole and remembers where tracing failed."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole = whole
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.whole or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is the first to see the error on its way out.
            self.failed = self.failed or self.path_of_module(m)
            raise


def fold_batchnorm(network: nn.Module) -> Folded:
    """Fold every batch norm whose input is a convolution that serves nothing else.

    Works on a deep copy: `network` is not changed in any bit or mode. The result computes the
    same function up to rounding. Parts that torch.fx cannot trace are kept as they are, their
    batch norms listed; where that is the network itself, the unfolded copy is returned.
    """
    copied = copy.deepcopy(network).eval()
    reasons: dict[str, str] = {}
    graph = _trace(copied, reasons)
    if graph is None:
        return Folded(copied, [], _not_folded(copied, set(), reasons))
    result = fx.GraphModule(copied, graph)
    modules = dict(result.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")
    # A weight that the forward reads directly is one more use of its module.
    owners = (str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
    calls.update(id(modules[owner]) for owner in owners if owner in modules)
    folded: list[str] = []
    for node in list(graph.nodes):
        path = str(node.target)
        if node.op != "call_module" or not isinstance(modules[path], _BatchNorm):
            continue
        reason = _obstacle(node, modules, calls)
        if reason is None:
            _fold(node, modules)
            folded.append(path)
        else:
            reasons[path] = reason
    not_folded = _not_folded(copied, set(folded), reasons)
    result.delete_all_unused_submodules()
    graph.lint()
    result.recompile()
    return Folded(result.eval(), folded, not_folded)


def _trace(network: nn.Module, reasons: dict[str, str]) -> fx.Graph | None:
    """The network's graph, untraceable submodules as single calls; None if it has none."""
    whole: set[str] = set()
    while True:
        tracer = _FoldingTracer(whole)
        try:
            return tracer.trace(network)
        except Exception as error:  # user code under proxies may raise anything
            cause = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            if tracer.failed is None or tracer.failed in whole:
                reasons[""] = f"torch.fx cannot trace the network ({cause})"
                return None
            whole.add(tracer.failed)
            reasons[tracer.failed + "."] = f"torch.fx cannot trace '{tracer.failed}' ({cause})"


def _obstacle(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[int]) -> str | None:
    """The reason against folding the batch norm called at `node`; None if there is none."""
    norm = modules[str(node.target)]
    if type(norm) not in _NORMS or not isinstance(norm, _BatchNorm):
        return f"its class {type(norm).__name__} is no plain batch norm"
    if norm.running_mean is None:
        return "it has no running statistics"
    if calls[id(norm)] > 1:
        return f"it is used {calls[id(norm)]} times"
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return "its input is not the output of a convolution"
    path = str(before.target)
    conv = modules[path]
    if any(is_parametrized(m) or _has_hooks(m) for m in (conv, norm)):
        return f"hooks or parametrisations are on it or on '{path}' before it"
    if type(conv) not in _CONVOLUTIONS + _TRANSPOSED:
        return f"its input comes from '{path}' ({type(conv).__name__}), no convolution"
    if calls[id(conv)] > 1:
        return f"convolution '{path}' is used {calls[id(conv)]} times"
    if len(before.users) > 1:
        return f"the output of convolution '{path}' is used {len(before.users)} times"
    if isinstance(conv, _TRANSPOSED) and conv.groups > 1:
        return f"convolution '{path}' is transposed and grouped"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Replace the convolution before `node` by the fused one and take `node` out."""
    before = node.args[0]
    assert isinstance(before, fx.Node)
    path = str(before.target)
    conv, norm = modules[path], modules[str(node.target)]
    fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, _TRANSPOSED))  # type: ignore[type-var, arg-type]
    parent, _, name = path.rpartition(".")
    setattr(modules[parent], name, fused)
    modules[path] = fused
    node.replace_all_uses_with(before)
    node.graph.erase_node(node)


def _not_folded(
    network: nn.Module, folded: set[str], reasons: dict[str, str]
) -> list[dict[str, str]]:
    """Each batch norm that is left, with the reason."""
    entries = []
    for path, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or path in folded:
            continue
        inside = next((r for p, r in reasons.items() if p.endswith(".") and path.startswith(p)), "")
        reason = reasons.get(path) or inside or reasons.get("")
        entries.append({"module": path, "reason": reason or _unseen(module)})
    return entries


def _unseen(norm: nn.Module) -> str:
    """The reason why a batch norm that no node of the graph calls is left."""
    if type(norm) not in _NORMS:
        return f"its class {type(norm).__name__} is no plain batch norm"
    return "the forward does not call it"

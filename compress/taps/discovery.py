"""Discovery of taps: a network is run once, and the values of its modules are compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import UserError, nearest
from compress.taps.specs import MapSpec, TapSpecs

_POOLING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU)


def discover(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    name: str,
    *,
    stages: Sequence[str] | None = None,
    last_map: str | None = None,
    embeds: bool = False,
    dense: bool = False,
) -> TapSpecs:
    """Find the taps by running the network once in eval mode on noise of shape (C, H, W).

    The classifier is the last linear layer whose output is the network's; the last map is the map
    whose spatial mean is what the classifier reads; the pre-activation of a map is the input of
    the activation that produced it (the map itself where none did): all checked by value. In-place
    activations are switched off, since they would overwrite what a tap reads (results are equal);
    a map that is overwritten all the same is no tap.

    Args:
        stages: module paths of the stage maps, fine to coarse, in place of those found.
        last_map: module path of the last map, in place of the one found.
        embeds: the output is an embedding (N, D), which takes the place of what a classifier reads.
        dense: the output is a map of logits (N, K, h, w). The classifier is the last 1x1
            convolution that makes it, the last map what that reads.

    Raises:
        UserError: the network does not give one tensor (N, K), or (N, K, h, w), or a given path is
            no module that puts out one map.
    """
    switch_off_inplace(network)
    seen = _run(network, input_shape)
    _require_output(seen.logits, name, embeds=embeds, dense=dense)
    classifier = None if embeds else _classifier(seen, dense=dense)
    maps = _maps(seen)
    if dense:
        return _dense_specs(network, maps, seen, classifier, input_shape, stages, last_map, name)
    embedding = seen.logits if embeds else seen.inputs[classifier] if classifier else None
    _require(maps, [*(stages or ()), *([last_map] if last_map else [])], name)
    last = last_map
    if last is None and embedding is not None:
        last = _last_map(maps, embedding, seen.order)
    paths = list(stages) if stages else _stage_paths(network, maps)
    return TapSpecs(
        **_encoder_specs(paths, maps, seen, input_shape),
        last_map=_spec(last, maps[last], input_shape) if last else None,
        pooled_width=embedding.shape[-1] if embedding is not None else None,
        classifier=classifier,
        num_classes=seen.logits.shape[-1],
    )


def _dense_specs(
    network: nn.Module,
    maps: Mapping[str, Tensor],
    seen: "_Forward",
    classifier: str | None,
    input_shape: tuple[int, int, int],
    stages: Sequence[str] | None,
    last_map: str | None,
    name: str,
) -> TapSpecs:
    """The taps of a network whose output is a map of logits."""
    _require(maps, [*(stages or ()), *([last_map] if last_map else [])], name)
    # Without a declaration a head is no stage: stages end where the resolution is lowest.
    paths = list(stages) if stages else _stage_paths(network, maps)
    last = _spec(last_map, maps[last_map], input_shape) if last_map else None
    if last is None and classifier is not None:
        last = _spec(classifier, seen.inputs[classifier], input_shape, "input")
    auxiliary: str = getattr(network, "auxiliary_path", None) or ""
    return TapSpecs(
        **_encoder_specs(paths, maps, seen, input_shape),
        last_map=last,
        pooled_width=None,
        classifier=classifier,
        num_classes=seen.logits.shape[1],
        logits_map=_spec("", seen.logits, input_shape),
        auxiliary=_spec(auxiliary, maps[auxiliary], input_shape) if auxiliary in maps else None,
    )


def _encoder_specs(
    paths: Sequence[str],
    maps: Mapping[str, Tensor],
    seen: "_Forward",
    input_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Stages, their pre-activations and the stem."""
    return {
        "stages": tuple(_spec(path, maps[path], input_shape) for path in paths),
        "pre_activations": tuple(
            _pre_activation(path, maps[path], seen, input_shape) for path in paths
        ),
        "stem": _stem(maps, paths, seen, input_shape),
    }


def _require_output(output: Any, name: str, *, embeds: bool, dense: bool) -> None:
    if dense:
        expected = "logits of shape (images, classes, height, width)"
    else:
        expected = (
            "embeddings of shape (images, width)"
            if embeds
            else ("logits of shape (images, classes)")
        )
    dims = 4 if dense else 2
    if not isinstance(output, Tensor) or output.dim() != dims or not output.numel():
        raise UserError(f"{name} does not give {expected}")


def switch_off_inplace(network: nn.Module) -> None:
    """Let no activation module overwrite its input, which a tap may read; results are equal."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


@dataclass
class _Forward:
    """One forward pass: each module's output, first input and turn, outermost first; the logits."""

    modules: dict[str, nn.Module]
    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    order: dict[str, int]
    logits: Any


def _run(network: nn.Module, input_shape: tuple[int, int, int]) -> _Forward:
    """Run the network once in eval mode on noise."""
    device = next(network.parameters()).device
    noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    seen = _Forward(dict(network.named_modules()), {}, {}, {}, None)
    versions: dict[str, int] = {}

    def hook_for(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
                seen.outputs[path], seen.inputs[path] = output, inputs[0]
                seen.order[path] = len(versions)
                versions[path] = output._version

        return hook

    handles = [m.register_forward_hook(hook_for(p)) for p, m in seen.modules.items() if p]
    training = network.training
    try:
        with torch.no_grad():
            seen.logits = network.eval()(noise)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    # named_modules order (parents before children): the first of several equal maps is the
    # outermost module, which is the stable name.
    seen.outputs = {
        path: seen.outputs[path]
        for path in seen.modules
        if path in versions and seen.outputs[path]._version == versions[path]
    }
    return seen


def _classifier(seen: _Forward, *, dense: bool) -> str | None:
    """The last linear layer, or 1x1 convolution, whose output is the network's."""
    is_classifier = _is_pointwise if dense else _is_linear
    linear = [
        path
        for path, output in seen.outputs.items()
        if is_classifier(seen.modules[path])
        and output.shape == seen.logits.shape
        and torch.equal(output, seen.logits)
    ]
    return linear[-1] if linear else None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _maps(seen: _Forward) -> dict[str, Tensor]:
    """Outputs (N, C, H, W) that are no mere pooling of another."""
    return {
        path: output
        for path, output in seen.outputs.items()
        if output.dim() == 4 and not isinstance(seen.modules[path], _POOLING)
    }


def _require(maps: Mapping[str, Tensor], paths: Sequence[str], name: str) -> None:
    for path in paths:
        if path not in maps:
            raise UserError(f"{name} has no feature map at '{path}'{nearest(path, maps)}")


def _last_map(maps: Mapping[str, Tensor], pooled: Tensor, order: Mapping[str, int]) -> str | None:
    for path, output in maps.items():
        if output.shape[1] != pooled.shape[-1] or pooled.dim() != 2:
            continue
        if not torch.allclose(output.mean((2, 3)), pooled, rtol=1e-3, atol=1e-5):
            continue
        # Something after the pooling (a norm of the pooled vector) also has the right mean.
        is_pooled = any(
            other.shape[1] == output.shape[1]
            and other.shape[-1] > output.shape[-1] == 1
            and order[before] < order[path]
            for before, other in maps.items()
        )
        if not is_pooled:
            return path
    return None


def _spec(
    path: str,
    output: Tensor,
    input_shape: tuple[int, int, int],
    side: Literal["output", "input"] = "output",
) -> MapSpec:
    _, channels, height, width = output.shape
    return MapSpec(path, channels, height, width, max(1, round(input_shape[1] / height)), side)


def _pre_activation(
    path: str,
    output: Tensor,
    seen: _Forward,
    input_shape: tuple[int, int, int],
) -> MapSpec:
    # Where a norm and an activation follow in the next stage, the architecture says which.
    declared: Mapping[str, str] = getattr(seen.modules[""], "pre_activation_paths", {})
    if path in declared:
        return _spec(declared[path], seen.inputs[declared[path]], input_shape, "input")
    for other, candidate in seen.outputs.items():
        is_activation = isinstance(seen.modules[other], _ACTIVATIONS)
        if is_activation and candidate.shape == output.shape and torch.equal(candidate, output):
            return _spec(other, seen.inputs[other], input_shape, "input")
    return _spec(path, output, input_shape)


def _stem(
    maps: Mapping[str, Tensor],
    stages: Sequence[str],
    seen: _Forward,
    input_shape: tuple[int, int, int],
) -> MapSpec | None:
    """The first activated map (or the one that the architecture declares) before the stages."""
    declared: str | None = getattr(seen.modules[""], "stem_path", None)
    activated = [p for p in maps if isinstance(seen.modules[p], _ACTIVATIONS)]
    path = declared or min(activated, key=lambda p: seen.order[p], default=None)
    if path is None or not stages or path in stages:
        return None
    # Inside the first stage (or after it) a map is no stem.
    if path.startswith(f"{stages[0]}.") or seen.order[path] > seen.order[stages[0]]:
        return None
    return _spec(path, maps[path], input_shape)


def _stage_paths(network: nn.Module, maps: Mapping[str, Tensor]) -> list[str]:
    """The last link of the network's chain of modules at each resolution, fine to coarse.

    An architecture whose papers mean other maps declares them: `stage_paths`, in the same order.
    """
    declared: tuple[str, ...] | None = getattr(network, "stage_paths", None)
    if declared is not None:
        return list(declared)
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

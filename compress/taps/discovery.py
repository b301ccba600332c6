"""Discovery of taps: a network is run once, and the values of its modules are compared."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from compress.errors import UserError, nearest
from compress.taps.specs import Layout, MapSpec, Side, TapSpecs

_STAGES_OF_BLOCKS = 4
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

    The classifier is the last linear layer whose output is the network's, or there are heads whose
    mean it is; the last map is the map whose spatial mean is what the classifier reads, at once or
    through a layer norm; the pre-activation of a map is the input of the activation that produced
    it (the map itself where none did): all checked by value. In-place activations are switched off,
    since they would overwrite what a tap reads (results are equal); a map that is overwritten all
    the same is no tap.

    A map (N, H, W, C) is known by the linear layers and layer norms that read or make it, or read
    what makes it (`_channels_last`). Tokens (N, L, D) are known by the map of patches that they
    were made from (`_find_tokens`); of L > H W the first are of no patch. The stages of a network
    of tokens, which have one resolution, are four of its blocks, a quarter of them apart, the last
    among them; or the last alone behind maps of finer resolutions.

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
    tokens = _find_tokens(seen)
    maps = _maps(seen, tokens, input_shape)
    _require(maps, [*(stages or ()), *([last_map] if last_map else [])], name)
    paths = list(stages) if stages else _stage_paths(network, maps, seen, tokens)
    if dense:
        return _dense_specs(network, maps, seen, classifier, input_shape, paths, last_map)
    heads = [] if embeds or classifier else _heads(seen, tokens)
    embedding = seen.logits if embeds else _embedding(seen, classifier, heads)
    found, norm = _last_map(maps, embedding, seen)
    last = last_map or found
    return TapSpecs(
        **_encoder_specs(paths, maps, seen, input_shape),
        last_map=maps[last] if last else None,
        pooled_width=embedding.shape[-1] if embedding is not None else None,
        classifier=classifier,
        num_classes=seen.logits.shape[-1],
        pooled_norm=norm,
        heads=tuple(heads),
    )


def _embedding(seen: "_Forward", classifier: str | None, heads: Sequence[str]) -> Tensor | None:
    """What the classifier reads; of several heads, one after the other."""
    read = [seen.inputs[path] for path in ([classifier] if classifier else heads)]
    return torch.cat(read, dim=-1) if read else None


def _dense_specs(
    network: nn.Module,
    maps: Mapping[str, MapSpec],
    seen: "_Forward",
    classifier: str | None,
    input_shape: tuple[int, int, int],
    paths: Sequence[str],
    last_map: str | None,
) -> TapSpecs:
    """The taps of a network whose output is a map of logits."""
    # Without a declaration a head is no stage: stages end where the resolution is lowest.
    last = maps[last_map] if last_map else None
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
        auxiliary=maps.get(auxiliary),
    )


def _encoder_specs(
    paths: Sequence[str],
    maps: Mapping[str, MapSpec],
    seen: "_Forward",
    input_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Stages, their pre-activations and the stem."""
    return {
        "stages": tuple(maps[path] for path in paths),
        "pre_activations": tuple(_pre_activation(maps[path], seen, input_shape) for path in paths),
        "stem": _stem(maps, paths, seen),
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


def _heads(seen: _Forward, tokens: "_Tokens | None") -> list[str]:
    """The linear layers whose mean is the network's output; by the tokens that they read."""
    heads = [
        path
        for path, output in seen.outputs.items()
        if _is_linear(seen.modules[path]) and output.shape == seen.logits.shape
    ]
    if len(heads) < 2:
        return []
    mean = torch.stack([seen.outputs[path] for path in heads]).mean(0)
    if not torch.allclose(mean, seen.logits, rtol=1e-4, atol=1e-6):
        return []
    return sorted(heads, key=lambda path: _token_of(seen.inputs[path], seen, tokens))


def _token_of(vectors: Tensor, seen: _Forward, tokens: "_Tokens | None") -> int:
    """The number of the token that some vectors are; 0 where they are none."""
    for path in tokens.paths if tokens else ():
        for number in range(tokens.prefix if tokens else 0):
            if torch.equal(seen.outputs[path][:, number], vectors):
                return number
    return 0


@dataclass(frozen=True)
class _Tokens:
    """Tokens (N, prefix + height * width, D) of the patches of a map, and who puts them out."""

    prefix: int
    height: int
    width: int
    paths: tuple[str, ...]


def _find_tokens(seen: _Forward) -> _Tokens | None:
    """The tokens that were made from a map of patches, if there are any.

    By value: what differs between two images is the same in the map and in the tokens behind the
    prefix, whatever positions were added.
    """
    every = [*seen.outputs.values(), *seen.inputs.values()]
    sequences = [t for t in every if t.dim() == 3 and len(t) == 2]
    maps = [m for m in seen.outputs.values() if m.dim() == 4 and len(m) == 2] if sequences else []
    for patches in maps:
        height, width = patches.shape[-2:]
        prefixes = [t.shape[1] - height * width for t in sequences if _are_tokens(t, patches)]
        if prefixes:
            prefix = max(prefixes)  # patches alone are a sequence, too, before others join them
            shape = (2, prefix + height * width, patches.shape[1])
            paths = tuple(path for path, t in seen.outputs.items() if t.shape == shape)
            return _Tokens(prefix, height, width, paths)
    return None


def _are_tokens(sequence: Tensor, patches: Tensor) -> bool:
    prefix = sequence.shape[1] - patches.shape[2] * patches.shape[3]
    if prefix < 0 or sequence.shape[2] != patches.shape[1]:
        return False
    found, expected = sequence[0] - sequence[1], (patches[0] - patches[1]).flatten(1).T
    return torch.allclose(found[prefix:], expected, rtol=1e-4, atol=1e-5)


def _maps(
    seen: _Forward, tokens: _Tokens | None, input_shape: tuple[int, int, int]
) -> dict[str, MapSpec]:
    """Outputs that are maps and no mere pooling of another, nor the norm of one that was pooled."""
    pooled = {id(t) for p, t in seen.outputs.items() if isinstance(seen.modules[p], _POOLING)}
    last = _channels_last(seen)
    of_tokens = {*tokens.paths} if tokens else set()
    maps = {}
    for path, output in seen.outputs.items():
        module = seen.modules[path]
        if isinstance(module, _POOLING):
            continue
        if isinstance(module, nn.LayerNorm) and id(seen.inputs[path]) in pooled:
            continue
        if output.dim() == 4:
            layout: Layout = "channels_last" if id(output) in last else "channels_first"
            maps[path] = _spec(path, output, input_shape, layout=layout)
        elif tokens is not None and path in of_tokens:
            maps[path] = _token_spec(path, output, tokens, input_shape)
    return maps


def _channels_last(seen: _Forward) -> set[int]:
    """The identities of the tensors (N, H, W, C).

    Linear layers and layer norms read and make such tensors. A module that reads one and gives
    another of its shape, as a block does, leaves the channels where they are.
    """
    found: set[int] = set()
    for path, given in seen.inputs.items():
        if given.dim() == 4 and _reads_last(seen.modules[path], given, seen.outputs.get(path)):
            found |= {id(given), id(seen.outputs.get(path))}
    for path in sorted(seen.outputs, key=lambda path: seen.order[path]):
        given, output = seen.inputs[path], seen.outputs[path]
        is_view = given.data_ptr() == output.data_ptr()  # transposed, it may be
        if id(given) in found and output.shape == given.shape and not is_view:
            found.add(id(output))
    return found


def _reads_last(module: nn.Module, given: Tensor, output: Tensor | None) -> bool:
    """Whether a module reads the channels of (N, H, W, C); some layer norms permute theirs."""
    if not isinstance(module, nn.LayerNorm) or output is None:
        return _is_linear(module) and output is not None
    shape = module.normalized_shape
    return shape == given.shape[-1:] and torch.allclose(
        layer_norm(given, shape, module.weight, module.bias, module.eps), output, 1e-4, 1e-5
    )


def _require(maps: Mapping[str, MapSpec], paths: Sequence[str], name: str) -> None:
    for path in paths:
        if path not in maps:
            raise UserError(f"{name} has no feature map at '{path}'{nearest(path, maps)}")


def _last_map(
    maps: Mapping[str, MapSpec], embedding: Tensor | None, seen: _Forward
) -> tuple[str | None, str | None]:
    """The map whose mean the classifier reads, and the layer norm between the two if any."""
    if embedding is None or embedding.dim() != 2:
        return None, None
    path = _map_with_mean(maps, embedding, seen)
    if path is not None:
        return path, None
    for norm, output in seen.outputs.items():
        given = seen.inputs[norm]
        if not isinstance(seen.modules[norm], nn.LayerNorm) or given.numel() != embedding.numel():
            continue
        if torch.equal(output.flatten(1), embedding):
            path = _map_with_mean(maps, given.flatten(1), seen)
            if path is not None:
                return path, norm
    return None, None


def _map_with_mean(maps: Mapping[str, MapSpec], pooled: Tensor, seen: _Forward) -> str | None:
    """The last map of this mean, by the name of the outermost module that puts it out."""
    found = []
    for path, spec in maps.items():
        if spec.channels != pooled.shape[-1]:
            continue
        mean = spec.read([seen.outputs[path]]).mean((2, 3))
        if not torch.allclose(mean, pooled, rtol=1e-3, atol=1e-5):
            continue
        if not _may_be_pooled(path, maps, seen):
            found.append(path)
    # A norm of a new network may change nothing: what is before it is not read.
    last = max(found, key=lambda path: seen.order[path], default=None)
    same = (p for p in found if last is not None and _equal(seen.outputs[p], seen.outputs[last]))
    return next(same, None)


def _may_be_pooled(path: str, maps: Mapping[str, MapSpec], seen: _Forward) -> bool:
    """Whether a map of one pixel may be the mean of the last larger one before it, or its norm."""
    if maps[path].width > 1:
        return False
    before = [other for other in maps if seen.order[other] < seen.order[path]]
    larger = [other for other in before if maps[other].width > 1]
    last = max(larger, key=lambda other: seen.order[other], default=None)
    return last is not None and maps[last].channels == maps[path].channels


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _spec(
    path: str,
    output: Tensor,
    input_shape: tuple[int, int, int],
    side: Side = "output",
    layout: Layout = "channels_first",
) -> MapSpec:
    _, channels, height, width = output.shape
    if layout == "channels_last":
        channels, height, width = width, channels, height
    stride = max(1, round(input_shape[1] / height))
    return MapSpec(path, channels, height, width, stride, side, layout)


def _token_spec(
    path: str, output: Tensor, tokens: _Tokens, input_shape: tuple[int, int, int]
) -> MapSpec:
    stride = max(1, round(input_shape[1] / tokens.height))
    size = output.shape[2], tokens.height, tokens.width
    return MapSpec(path, *size, stride, layout="tokens", prefix=tokens.prefix)


def _pre_activation(spec: MapSpec, seen: _Forward, input_shape: tuple[int, int, int]) -> MapSpec:
    # Where a norm and an activation follow in the next stage, the architecture says which.
    declared: Mapping[str, str] = getattr(seen.modules[""], "pre_activation_paths", {})
    if spec.path in declared:
        path = declared[spec.path]
        return _spec(path, seen.inputs[path], input_shape, "input")
    output = seen.outputs[spec.path]
    for other, candidate in seen.outputs.items():
        is_activation = isinstance(seen.modules[other], _ACTIVATIONS)
        if is_activation and candidate.shape == output.shape and torch.equal(candidate, output):
            return replace(spec, path=other, side="input")
    return spec


def _stem(maps: Mapping[str, MapSpec], stages: Sequence[str], seen: _Forward) -> MapSpec | None:
    """The first activated map (or the one that the architecture declares) before the stages."""
    declared: str | None = getattr(seen.modules[""], "stem_path", None)
    activated = [
        path
        for path, spec in maps.items()
        if isinstance(seen.modules[path], _ACTIVATIONS) and spec.layout == "channels_first"
    ]
    path = declared or min(activated, key=lambda p: seen.order[p], default=None)
    if path is None or not stages or path in stages:
        return None
    # Inside the first stage (or after it) a map is no stem.
    if path.startswith(f"{stages[0]}.") or seen.order[path] > seen.order[stages[0]]:
        return None
    return maps[path]


def _stage_paths(
    network: nn.Module, maps: Mapping[str, MapSpec], seen: _Forward, tokens: _Tokens | None
) -> list[str]:
    """The last link of the network's chain of modules at each resolution, fine to coarse.

    An architecture whose papers mean other maps declares them: `stage_paths`, in the same order.
    """
    declared: tuple[str, ...] | None = getattr(network, "stage_paths", None)
    if declared is not None:
        return list(declared)
    blocks = _blocks(seen, tokens)
    by_size: dict[int, str] = {}
    for path in _chain(network, ""):
        if path in maps and not (blocks and maps[path].width <= maps[blocks[0]].width):
            by_size[maps[path].width] = path
    return [*by_size.values(), *(blocks[-1:] if by_size else blocks)]


def _blocks(seen: _Forward, tokens: _Tokens | None) -> list[str]:
    """Of the longest list of blocks that put out tokens, those that are stages."""
    if tokens is None:
        return []
    paths: list[str] = []
    for name, module in seen.modules.items():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            prefix = f"{name}." if name else ""
            children = [prefix + child for child, _ in module.named_children()]
            if len(children) > len(paths) and all(child in tokens.paths for child in children):
                paths = children
    count = min(_STAGES_OF_BLOCKS, len(paths))
    return [paths[math.ceil(len(paths) * (i + 1) / count) - 1] for i in range(count)]


def _chain(module: nn.Module, prefix: str) -> Iterator[str]:
    """Direct children, and those of nested containers, in their order; no block is entered."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.Sequential):
            yield from _chain(child, f"{path}.")
        yield path

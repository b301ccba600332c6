"""Maps of networks that have other layouts, tokens, and what stands before a classifier."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.errors import UserError
from compress.taps import (
    Tapped,
    TappedGraph,
    TapSpecs,
    TokensSpec,
    discover,
    encoder_until,
    tail_after,
)
from tests import transformers
from tests.transformers import NAMES, SHAPE, images, network

# Channels and side of the stages, and the layout of the first; the last map and its norm.
STAGES = {
    "vit": [(16, 4)] * 4,
    "vit_registers": [(16, 4)] * 4,
    "vit_mean": [(16, 4)] * 4,
    "deit": [(16, 4)] * 4,
    "swin": [(8, 16), (16, 8), (32, 4)],
    "convnext": [(8, 8), (12, 4), (16, 2), (24, 1)],
    "torchvision_vit": [(16, 4)] * 2,
    "torchvision_swin": [(8, 16), (16, 8)],
    "torchvision_convnext": [(8, 8), (12, 4), (16, 2)],
    "own_vit": [(16, 4)] * 2,
    "own_deit": [(16, 4)] * 2,
}
PREFIX = {"vit": 1, "vit_registers": 5, "vit_mean": 1, "deit": 2, "torchvision_vit": 1}
PREFIX |= {"own_vit": 1, "own_deit": 2}
LAST_MAP = {
    "vit_mean": ("blocks", "fc_norm"),
    "swin": ("norm", None),
    "convnext": ("stages", "head.norm"),
    "torchvision_swin": ("permute", None),
    "torchvision_convnext": ("features", "classifier.0"),
}


def found(name: str) -> tuple[nn.Module, TapSpecs]:
    made = network(name).eval()
    return made, discover(made, SHAPE, name)


def kinds(specs: TapSpecs) -> list[str]:
    of_some = [kind for kind in ("last_map", "tokens") if specs.of(kind)]
    return ["logits", "pooled", "stages", "pre_activations", *of_some]


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_channels_first(name: str) -> None:
    made, specs = found(name)
    assert [(s.channels, s.height) for s in specs.stages] == STAGES[name]
    assert all(s.height == s.width and s.stride == 32 // s.height for s in specs.stages)
    assert specs.stem is None
    taps = Tapped(made, specs, ("stages", "pre_activations"))(images())
    for maps in (taps.tensors("stages"), taps.tensors("pre_activations")):
        assert [tuple(m.shape) for m in maps] == [(3, *s.shape) for s in specs.stages]


@pytest.mark.parametrize("name", [name for name in NAMES if "own" not in name])
def test_a_pixel_of_a_map_is_where_the_image_has_it(name: str) -> None:
    """What changes most where a corner of the image changes is that corner of the first stage."""
    made, specs = found(name)
    shown, other = images(1), images(1)
    other[:, :, :8, 24:] += 3  # the corner at the top right
    before, after = (
        Tapped(made, specs, ["stages"])(x).tensors("stages")[0] for x in (shown, other)
    )
    changed = (after - before).square().sum(1)[0]
    height, width = divmod(int(changed.flatten().argmax()), changed.shape[1])
    assert height < changed.shape[0] / 4
    assert width >= changed.shape[1] * 3 / 4


@pytest.mark.parametrize("name", PREFIX)
def test_tokens_have_the_prefix_that_maps_are_without(name: str) -> None:
    made, specs = found(name)
    spec = specs.of("tokens")
    assert isinstance(spec, tuple)
    assert isinstance(spec[0], TokensSpec)
    assert (spec[0].prefix, spec[0].shape) == (PREFIX[name], (PREFIX[name] + 16, 16))
    taps = Tapped(made, specs, ("tokens", "stages"))(images())
    for tokens, maps in zip(taps.tensors("tokens"), taps.tensors("stages"), strict=True):
        for number in range(16):
            expected = tokens[:, PREFIX[name] + number]
            assert torch.equal(maps[:, :, number // 4, number % 4], expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PREFIX])
def test_a_network_without_tokens_says_so(name: str) -> None:
    made, specs = found(name)
    with pytest.raises(UserError, match="has no blocks that put out the tokens of patches"):
        Tapped(made, specs, ["tokens"])


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_reads_the_pooled_vector(name: str) -> None:
    made, specs = found(name)
    heads = {"deit": ("head", "head_dist"), "own_deit": ("head", "others.0")}
    assert specs.heads == heads.get(name, ())
    assert (specs.classifier is None) == (name in heads)
    taps = Tapped(made, specs, kinds(specs))(images())
    read = taps.tensor("pooled")
    parts = read.chunk(len(specs.classifiers), dim=1)
    logits = [made.get_submodule(p)(v) for p, v in zip(specs.classifiers, parts, strict=True)]
    torch.testing.assert_close(torch.stack(logits).mean(0), taps.tensor("logits"))
    assert specs.pooled_width == read.shape[1]
    last = specs.last_map
    assert (last and last.path, specs.pooled_norm) == LAST_MAP.get(name, (None, None))
    if last is not None:
        mean = taps.tensor("last_map").mean((2, 3))
        if specs.pooled_norm is not None:
            norm = made.get_submodule(specs.pooled_norm)
            mean = norm(mean if name == "vit_mean" else mean[..., None, None]).flatten(1)
        torch.testing.assert_close(mean, read, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_shows_what_hooks_show(name: str, training: bool) -> None:
    made, specs = found(name)
    for module in made.modules():
        if "StochasticDepth" in type(module).__name__ or "DropPath" in type(module).__name__:
            module.eval()
    made.train(training)
    other = copy.deepcopy(made)
    shown = []
    for tapped in (TappedGraph(made, specs, kinds(specs)), Tapped(other, specs, kinds(specs))):
        torch.manual_seed(0)
        shown.append(tapped(images()))
    for kind in kinds(specs):
        one, two = (taps[kind] for taps in shown)
        pairs = zip(one, two, strict=True) if isinstance(one, list) else [(one, two)]
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_specs_survive_json(name: str) -> None:
    _, specs = found(name)
    content = json.loads(json.dumps(specs.as_dict()))
    assert TapSpecs.from_dict(content) == specs
    assert ("heads" in content) == ("deit" in name)
    assert ("layout" in content["stages"][0]) == ("convnext" not in name)


@pytest.mark.parametrize("name", LAST_MAP)
def test_an_encoder_ends_in_the_last_map(name: str) -> None:
    made, specs = found(name)
    assert specs.last_map is not None
    encoder = encoder_until(made, specs.last_map)
    with torch.no_grad():
        expected = Tapped(made, specs, ["last_map"])(images()).tensor("last_map")
        assert torch.equal(encoder(images()), expected)


@pytest.mark.parametrize("name", ["swin", "convnext", "torchvision_swin", "vit"])
def test_a_network_is_its_encoder_and_its_tail(name: str) -> None:
    made, specs = found(name)
    spec = specs.stages[-2]
    if spec.prefix:
        with pytest.raises(UserError, match="also reads a class token"):
            tail_after(made, spec)
        return
    with torch.no_grad():
        maps = encoder_until(made, spec)(images())
        assert maps.shape[1:] == spec.shape
        torch.testing.assert_close(tail_after(made, spec)(maps), made(images()))


def test_a_last_map_of_one_pixel_is_told_from_what_was_pooled() -> None:
    # At 32 pixels, and a hidden layer two stages before has as many channels as the last map.
    network = models.build("timm:convnext_atto", num_classes=5)
    specs = discover(network, (3, 32, 32), "convnext")
    assert specs.last_map is not None
    assert (specs.last_map.channels, specs.last_map.width) == (320, 1)
    larger = discover(network, (3, 64, 64), "convnext").last_map
    assert larger is not None and larger.path == specs.last_map.path


def test_a_stage_that_is_named_by_its_path_is_a_map() -> None:
    made, specs = found("torchvision_swin")
    taps = Tapped(made, specs, ["features.1", "features.1.0", "stages"])(images())
    assert torch.equal(taps.tensor("features.1"), taps.tensors("stages")[0])
    assert taps.tensor("features.1.0").shape == (3, 16, 16, 8)  # as the module has it


def test_blocks_can_be_named_as_stages() -> None:
    made = network("own_vit", seed=1)
    specs = discover(made, SHAPE, "mine", stages=["blocks.0"])
    assert [(s.path, s.prefix) for s in specs.stages] == [("blocks.0", 1)]
    with pytest.raises(UserError, match=r"no feature map at .blocks\.7.; did you mean .blocks"):
        discover(made, SHAPE, "mine", stages=["blocks.7"])


class Between(nn.Module):
    """The class token comes last, so the tokens are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = transformers.OwnViT()

    def forward(self, shown: Tensor) -> Tensor:
        vit = self.whole
        tokens = vit.patches(shown).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, vit.first.expand(shown.shape[0], -1, -1)], 1)
        for block in vit.blocks:
            tokens = block(tokens)
        logits: Tensor = vit.head(tokens[:, -1])
        return logits


def test_tokens_in_another_order_are_none() -> None:
    specs = discover(Between(), SHAPE, "mine")
    assert specs.of("tokens") is None
    assert all(stage.layout == "channels_first" for stage in specs.stages)

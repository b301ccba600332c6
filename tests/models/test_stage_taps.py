"""Stage maps of the CIFAR networks are those of the papers' code (their features without stem)."""

import pytest
import torch

from compress.errors import UserError
from compress.models import build
from compress.taps import Tapped, discover

# Channels and sizes at 32 pixels, f1 to fL.
PAPERS = {
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "wrn_16_2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
    "resnet50_cifar": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
}


@pytest.mark.parametrize("name", PAPERS)
def test_stages_and_pre_activations(name: str) -> None:
    network = build(name, num_classes=10).eval()
    specs = discover(network, (3, 32, 32), name)
    for maps in (specs.stages, specs.pre_activations):
        assert [(s.channels, s.height) for s in maps] == PAPERS[name]
    taps = Tapped(network, specs, ("stages", "pre_activations"))(torch.randn(2, 3, 32, 32))
    for spec, stage, before in zip(
        specs.pre_activations, taps.tensors("stages"), taps.tensors("pre_activations"), strict=True
    ):
        if spec.side == "input":
            assert (before < 0).any()
            # A wide ResNet's stage map is the raw sum, which no activation has produced.
            if not name.startswith("wrn"):
                assert torch.equal(before.relu(), stage)


def test_a_wide_resnet_is_tapped_behind_the_next_norm() -> None:
    network = build("wrn_16_2", num_classes=10).eval()
    specs = discover(network, (3, 32, 32), "wrn_16_2")
    taps = Tapped(network, specs, ("stages", "pre_activations"))(torch.randn(2, 3, 32, 32))
    norm = network.get_submodule("block2.layer.0.bn1")
    torch.testing.assert_close(taps.tensors("pre_activations")[0], norm(taps.tensors("stages")[0]))


def test_paths_that_are_given_replace_those_found() -> None:
    network = build("resnet20", num_classes=10).eval()
    specs = discover(network, (3, 32, 32), "resnet20")
    given = discover(
        network, (3, 32, 32), "resnet20", stages=["layer1.0", "layer2.1"], last_map="layer2"
    )
    assert [s.path for s in given.stages] == ["layer1.0", "layer2.1"]
    assert [s.path for s in given.pre_activations] == ["layer1.0.relu2", "layer2.1.relu2"]
    assert given.last_map is not None
    assert (given.last_map.path, given.last_map.channels) == ("layer2", 32)
    assert (given.classifier, given.pooled_width) == (specs.classifier, specs.pooled_width)
    with pytest.raises(UserError, match=r"no feature map at 'layer2\.9'; did you mean 'layer2"):
        discover(network, (3, 32, 32), "resnet20", stages=["layer2.9"])

"""Networks that segment: parameter counts of the papers, any size, taps by value, pooling."""

import pytest
import torch
from torch import nn

from compress.errors import UserError
from compress.models import build
from compress.models.segmentation.pyramid import auxiliary_head
from compress.taps import Tapped, TappedGraph, TapSpecs, discover

SHAPE = (3, 64, 64)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense_specs(network: nn.Module) -> TapSpecs:
    return discover(network, SHAPE, "network", dense=True)


@pytest.mark.parametrize(
    ("encoder", "millions"), [("torchvision:resnet18", 13.07), ("torchvision:resnet101", 70.43)]
)
def test_parameters_are_those_of_dlkds_table(encoder: str, millions: float) -> None:
    """DLKD Table IV: with a deep stem, 19 classes and the auxiliary head of the training."""
    with torch.device("meta"):
        head = auxiliary_head({13.07: 256, 70.43: 1024}[millions], 19)
    network = build("pspnet", num_classes=19, encoder=encoder, deep_stem=True)
    assert round((parameters(network) + parameters(head)) / 1e6, 2) == pytest.approx(
        millions, abs=0.011
    )


@pytest.mark.parametrize("encoder", ["resnet8", "mobilenetv2", "vgg8", "torchvision:resnet18"])
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (33, 50)])
def test_images_of_any_size_have_logits_at_the_stride(encoder: str, size: tuple[int, int]) -> None:
    network = build("pspnet", num_classes=5, encoder=encoder, width=8).eval()
    stride = 8 if ":" in encoder else {"resnet8": 4, "mobilenetv2": 16, "vgg8": 8}[encoder]
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, *size))
    assert logits.shape[:2] == (1, 5)
    for side, whole in zip(logits.shape[2:], size, strict=True):
        assert whole // stride <= side <= -(-whole // stride)


def test_an_imagenet_resnet_can_keep_its_stride() -> None:
    network = build("pspnet", num_classes=2, encoder="torchvision:resnet18", dilated=False)
    assert dense_specs(network).logits_map is not None
    assert dense_specs(network).logits_map.stride == 32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pspnet", {"encoder": "resnet8x4", "width": 8}),
        ("pspnet", {"encoder": "torchvision:resnet18", "width": 8}),
        ("torchvision:fcn_resnet50", {}),
        ("torchvision:lraspp_mobilenet_v3_large", {}),
    ],
)
def test_taps_are_found_and_read_alike_by_hooks_and_graphs(
    name: str, arguments: dict[str, object]
) -> None:
    network = build(name, num_classes=5, **arguments).eval()  # type: ignore[arg-type]
    specs = dense_specs(network)
    assert specs.is_dense
    assert specs.num_classes == 5
    assert specs.of("pooled") is None
    wanted = ["logits", *(k for k in ("stages", "last_map", "auxiliary") if specs.of(k))]
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        seen = Tapped(network, specs, wanted)(images)
        traced = TappedGraph(network, specs, wanted)(images)
        assert torch.equal(seen.tensor("logits"), network(images))
    for kind in wanted:
        pairs = (
            [t[kind]] if isinstance(t[kind], torch.Tensor) else t[kind] for t in (seen, traced)
        )
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other)
    assert TapSpecs.from_dict(specs.as_dict()) == specs


def test_the_last_map_is_what_the_classifier_reads() -> None:
    network = build("pspnet", num_classes=5, encoder="resnet8", width=8).eval()
    specs = dense_specs(network)
    assert (specs.classifier, specs.last_map.side) == ("head.classifier", "input")  # type: ignore[union-attr]
    taps = Tapped(network, specs, ["last_map", "logits"])(torch.randn(2, *SHAPE))
    classifier = network.get_submodule("head.classifier")
    torch.testing.assert_close(classifier(taps.tensor("last_map")), taps.tensor("logits"))


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"does not give logits of shape \(images, classes, h"):
        dense_specs(build("resnet8", num_classes=5))
    with pytest.raises(UserError, match="accepted is a classification network of ours"):
        build("pspnet", num_classes=5, encoder="own.py:network")
    with pytest.raises(UserError, match="has no stem of an ImageNet-style ResNet"):
        build("pspnet", num_classes=5, encoder="vgg8", deep_stem=True)

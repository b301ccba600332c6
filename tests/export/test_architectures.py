"""Every architecture and whatever a method ships is the same network as a file, at any batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.methods import METHODS, Method
from compress.models import MODELS, build
from compress.models.resnet50_cifar import BottleneckResNet
from compress.onnx import open_session, run_session
from export import export_onnx
from tests import transformers
from tests.export.networks import trained
from tests.export.tracing import traced_exports
from tests.methods import building

CLASSES = building.CLASSES
BATCHES = (1, 2, 5)


def shortened(name: str) -> nn.Module:
    """The named network without blocks that are as the one before: every kind, in half the time."""
    network = build(name, num_classes=CLASSES)
    for module in list(network.modules()):
        for child, stage in list(module.named_children()):
            if isinstance(stage, nn.Sequential):
                setattr(module, child, nn.Sequential(*_different(list(stage))))
    return network


def _different(blocks: list[nn.Module]) -> list[nn.Module]:
    shapes = [[value.shape for value in block.state_dict().values()] for block in blocks]
    return [
        b for i, b in enumerate(blocks) if i == 0 or not shapes[i] or shapes[i] != shapes[i - 1]
    ]


def whole(name: str) -> nn.Module:
    return build(name, num_classes=CLASSES)


def bottlenecks(_: str) -> nn.Module:
    return BottleneckResNet(blocks=(1, 2, 1, 1), num_classes=CLASSES)


# One of each family, and the size of its images.
NETWORKS: dict[str, tuple[Callable[[str], nn.Module], int]] = {
    "resnet8": (whole, 16),
    "wrn_16_1": (whole, 16),
    "vgg8": (whole, 16),
    "mobilenetv2": (shortened, 32),
    "shufflenetv1": (shortened, 16),
    "shufflenetv2": (shortened, 16),
    "resnet50_cifar": (bottlenecks, 16),
    "torchvision:resnet18": (whole, 64),
    "torchvision:mobilenet_v3_small": (shortened, 64),
    "timm:resnet10t": (whole, 64),
}


def require_equal(network: nn.Module, path: Path, size: int) -> None:
    """Export, then compare with torch at several batch sizes."""
    export_onnx(
        network,
        path,
        input_shape=(3, size, size),
        class_names=[str(i) for i in range(CLASSES)],
        preprocessing={},
        fingerprint="",
    )
    session = open_session(path)
    images = torch.randn(max(BATCHES), 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images)
    assert expected.std(0).min() > 0, "the network tells no image from another"
    for batch in BATCHES:
        found = torch.from_numpy(run_session(session, images[:batch].numpy()))
        torch.testing.assert_close(
            found, expected[:batch], rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )


def test_every_family_is_here() -> None:
    families = {build(name, num_classes=CLASSES).__class__ for name in small_of_each_builder()}
    assert families == {build(n, num_classes=CLASSES).__class__ for n in NETWORKS if ":" not in n}


def small_of_each_builder() -> list[str]:
    """The shallowest network of each class that the zoo has."""
    chosen: dict[object, str] = {}
    for name, builder in MODELS.items():
        chosen.setdefault(getattr(builder, "func", builder), name)
    return list(chosen.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_architecture_is_the_same_as_a_file(tmp_path: Path, name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is an extra")
    make, size = NETWORKS[name]
    require_equal(trained(make(name), size=size), tmp_path / "x.onnx", size)


@pytest.mark.parametrize("name", ["vit", "deit", "swin", "torchvision_convnext", "own_vit"])
def test_a_transformer_is_the_same_as_a_file(tmp_path: Path, name: str) -> None:
    network = trained(transformers.network(name), size=transformers.SHAPE[-1])
    require_equal(network, tmp_path / "x.onnx", transformers.SHAPE[-1])


def deployed(method_class: type[Method], student: str) -> nn.Module:
    """What the method ships of an untrained student."""
    network, teachers = building.networks(student=student)
    method = method_class(building.context(network, teachers))
    product = method.deploy(network)
    assert product is not network
    return trained(product, size=building.SHAPE[-1])


# Those that come later are found by this too.
SHIPPING = [n for n in METHODS if METHODS[n].deploy is not Method.deploy]


def test_the_method_that_ships_more_is_among_them() -> None:
    assert "simkd" in SHIPPING


@pytest.mark.parametrize("name", SHIPPING)
def test_what_a_method_ships_is_the_same_as_a_file(tmp_path: Path, name: str) -> None:
    network = deployed(METHODS[name], "resnet8")
    require_equal(network, tmp_path / "x.onnx", building.SHAPE[-1])


def test_a_wide_student_with_the_teachers_classifier(tmp_path: Path) -> None:
    network = deployed(METHODS["simkd"], "resnet8x4")
    with traced_exports():
        require_equal(network, tmp_path / "x.onnx", building.SHAPE[-1])

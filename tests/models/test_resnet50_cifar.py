"""ResNet-50 for small images."""

from compress.models import build
from compress.taps import discover
from tests.models.contract import (
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
    spec_place,
)

STAGES = [("layer1", 256, 32), ("layer2", 512, 16), ("layer3", 1024, 8), ("layer4", 2048, 4)]


def test_published_parameter_count() -> None:
    assert parameters("resnet50_cifar") == 23_705_252


def test_taps() -> None:
    check_taps("resnet50_cifar", last=("layer4", 2048, 4), stages=STAGES)
    specs = discover(build("resnet50_cifar", num_classes=3), (3, 32, 32), "resnet50_cifar")
    assert [spec_place(stage) for stage in specs.stages] == STAGES


def test_pre_activations_are_what_the_last_relu_of_a_stage_reads() -> None:
    places = {f"layer{i + 1}": f"layer{i + 1}.{n - 1}.relu3" for i, n in enumerate((3, 4, 6, 3))}
    check_pre_activations("resnet50_cifar", places)


def test_other_sizes() -> None:
    check_sizes("resnet50_cifar", (40, 16), (16, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("resnet50_cifar")

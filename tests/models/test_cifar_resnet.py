"""The SimKD repository's post-activation networks (some of which its paper calls WRN)."""

import pytest

from compress.models import build
from compress.taps import discover
from tests.models.contract import (
    Place,
    check_gradients,
    check_pre_activations,
    check_sizes,
    check_taps,
    parameters,
    spec_place,
)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet8", 83_892),
        ("resnet14", 181_108),
        ("resnet38", 569_972),
        ("resnet44", 667_188),
        ("resnet200", 3_194_804),
        ("resnet14x2", 703_732),
        ("resnet38x2", 2_255_604),
        ("resnet14x4", 2_783_620),
        ("resnet20x4", 4_333_700),
        ("resnet26x4", 5_883_780),
        ("resnet38x4", 8_983_940),
        ("resnet44x4", 10_534_020),
        ("resnet56x4", 13_634_180),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(name) == count


@pytest.mark.parametrize(("name", "width"), [("resnet38", 16), ("resnet38x2", 32)])
def test_taps(name: str, width: int) -> None:
    stages: list[Place] = [
        ("layer1", width, 32),
        ("layer2", 2 * width, 16),
        ("layer3", 4 * width, 8),
    ]
    check_taps(name, last=("layer3", 4 * width, 8), stages=stages)
    specs = discover(build(name, num_classes=3), (3, 32, 32), name)
    assert [spec_place(stage) for stage in specs.stages] == stages


def test_the_stem_is_wide_only_where_the_released_one_is() -> None:
    stems = {"resnet38": 16, "resnet14x2": 16, "resnet38x2": 16, "resnet14x4": 32, "resnet38x4": 32}
    for name, stem in stems.items():
        assert build(name, num_classes=2).get_parameter("conv1.weight").shape[0] == stem


def test_pre_activations_are_what_the_last_relu_of_a_stage_reads() -> None:
    check_pre_activations("resnet14x2", {f"layer{i}": f"layer{i}.1.relu2" for i in (1, 2, 3)})


def test_other_sizes() -> None:
    check_sizes("resnet14x2", (64, 48), (20, 8))


def test_gradient_reaches_every_parameter() -> None:
    check_gradients("resnet14x2")

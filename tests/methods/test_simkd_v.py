"""SimKD_v against float64 loops; what ships is one linear layer with the logits of all parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.methods import simkd_v_loss
from compress.methods.simkd_v import SimKDV, merge_layers
from compress.models import build
from tests.methods import building


def _built(*names: str) -> tuple[nn.Module, SimKDV]:
    student = build("resnet8", num_classes=building.CLASSES, seed=1)
    teachers = [build(name, num_classes=building.CLASSES, seed=i) for i, name in enumerate(names)]
    return student, SimKDV(building.context(student, teachers))


def test_equals_the_formula() -> None:
    projected = [torch.randn(3, width, dtype=torch.float64) for width in (4, 7)]
    known = [torch.randn_like(one) for one in projected]
    expected = 0.0
    for own, other in zip(projected, known, strict=True):
        pairs = [*zip(own.flatten().tolist(), other.flatten().tolist(), strict=True)]
        expected += sum((a - b) ** 2 for a, b in pairs) / len(pairs) / len(projected)
    assert float(simkd_v_loss(projected, known)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_merged_layer_is_the_mean_of_the_products(has_bias: bool) -> None:
    widths, features, classes = (5, 3), 4, 6
    projectors = [nn.Linear(features, width).double() for width in widths]
    classifiers = [nn.Linear(width, classes, bias=has_bias).double() for width in widths]
    merged = merge_layers(projectors, classifiers).requires_grad_(False)
    for layer in (*projectors, *classifiers):
        layer.requires_grad_(False)
    for k in range(classes):
        bias = 0.0
        for p, c in zip(projectors, classifiers, strict=True):
            own = float(c.bias[k]) if has_bias else 0.0
            inner = sum(float(c.weight[k, d] * p.bias[d]) for d in range(p.out_features))
            bias += (own + inner) / len(widths)
        assert float(merged.bias[k]) == pytest.approx(bias, rel=1e-12)
        for j in range(features):
            weight = 0.0
            for p, c in zip(projectors, classifiers, strict=True):
                products = (float(c.weight[k, d] * p.weight[d, j]) for d in range(p.out_features))
                weight += sum(products) / len(widths)
            assert float(merged.weight[k, j]) == pytest.approx(weight, rel=1e-12)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(images)
    return logits


def test_what_ships_says_what_was_trained_with_no_parameter_more_than_the_student() -> None:
    student, method = _built("resnet8x4", "vgg8")
    student, method = student.double(), method.double()
    deployed, shipped = method.deploy(student), method.ship(student)
    images = torch.randn(4, *building.SHAPE, dtype=torch.float64)
    torch.testing.assert_close(
        _logits(shipped, images), _logits(deployed, images), rtol=1e-12, atol=1e-12
    )
    counts = [sum(p.numel() for p in network.parameters()) for network in (shipped, student)]
    assert counts[0] == counts[1]
    assert sum(p.numel() for p in deployed.parameters()) > counts[1]


def test_the_merged_layer_is_of_the_projectors_when_it_is_built() -> None:
    student, method = _built("resnet14", "resnet20")
    images = torch.randn(4, *building.SHAPE)
    before = _logits(method.ship(student), images)
    with torch.no_grad():
        for projector in method.projectors:
            projector.weight.mul_(2)
    after = _logits(method.ship(student), images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, _logits(method.deploy(student), images))


def test_perfect_projections_average_the_teachers() -> None:
    student, method = _built("resnet8", "resnet8")
    teachers = [build("resnet8", num_classes=building.CLASSES, seed=i) for i in range(2)]
    with torch.no_grad():
        for projector in method.projectors:  # each says what the student's vector is
            projector.weight.copy_(torch.eye(64))
            projector.bias.zero_()
    shipped = method.ship(student)
    weights = [teacher.get_submodule("fc").weight for teacher in teachers]
    mean = (weights[0] + weights[1]) / 2  # type: ignore[operator]
    torch.testing.assert_close(shipped.get_submodule("classifier").weight, mean)


def test_a_student_without_a_last_map_is_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="ends in global average pooling"):
        SimKDV(replace(context, student=replace(context.student, last_map=None)))

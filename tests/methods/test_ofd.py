"""OFD against float64 loops over the formulas, its margins and whose they are, refusals."""

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from compress.methods import ofd_loss, ofd_margins
from compress.methods.ofd import OFD
from compress.models import build
from compress.taps import TapSpecs, batch_norm_of, discover
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    # Of the teachers' maps those of ShuffleNetV2 alone are no batch norm's: both branches joined.
    return [spec.path for spec in teacher.stages] == ["layer1", "layer2", "layer3"]


def _maps(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _oracle(student: list[Tensor], teacher: list[Tensor], margins: list[Tensor]) -> float:
    total = 0.0
    for stage, (own, known, margin) in enumerate(zip(student, teacher, margins, strict=True)):
        for n in range(len(own)):
            for c in range(own.shape[1]):
                values = zip(own[n, c].flatten().tolist(), known[n, c].flatten().tolist())  # noqa: B905
                for value, target in values:
                    kept = max(target, float(margin[c]))
                    if value > kept or kept > 0:
                        total += 2 ** (stage - len(student) + 1) * (value - kept) ** 2 / len(own)
    return total


def test_equals_the_formula() -> None:
    shapes = [(3, 2, 4, 4), (3, 5, 2, 3)]
    student = [_maps(*shape) for shape in shapes]
    teacher = [_maps(*shape, seed=1) for shape in shapes]
    margins = [-_maps(shape[1], seed=2).abs() for shape in shapes]
    got = ofd_loss(student, teacher, margins)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, margins), rel=1e-10)


def test_zero_for_equal_maps_and_below_the_margin_where_the_teacher_is_silent() -> None:
    maps, margin = _maps(2, 3, 4, 4), [torch.full((3,), -9.0).double()]
    assert float(ofd_loss([maps], [maps], margin)) == 0
    silent = -maps.abs() - 0.1
    assert float(ofd_loss([silent - 1], [silent], margin)) == 0
    assert float(ofd_loss([silent + 1], [silent], margin)) > 1


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (-0.7, 0.4), (2.0, 1.5), (0.5, -3.0)])
def test_margins_are_the_mean_of_negative_normal_values(scale: float, shift: float) -> None:
    normal = statistics.NormalDist(shift, abs(scale))
    step = abs(scale) / 200
    points = [i * step for i in range(-4000, 0)]
    weights = [normal.pdf(x + step / 2) for x in points]
    pairs = zip(points, weights, strict=True)
    expected = sum((x + step / 2) * w for x, w in pairs) / sum(weights)
    margin = ofd_margins(torch.tensor([scale]).double(), torch.tensor([shift]).double())
    assert float(margin) == pytest.approx(expected, rel=1e-3)


def test_margins_of_channels_that_are_hardly_ever_negative() -> None:
    margins = ofd_margins(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([5.0, 1.0, -2.0]))
    assert margins.tolist() == pytest.approx([-1.5, 0, -2], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8x4", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),  # not the shortcut's
        ("resnet14", ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2"]),
        ("wrn_16_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("torchvision:resnet18", ["bn1", *(f"layer{i}.1.bn2" for i in range(1, 5))]),
        ("timm:resnet10t", ["bn1", *(f"layer{i}.0.bn2" for i in range(1, 5))]),
    ],
)
def test_the_batch_norms_are_those_of_the_main_branch(name: str, expected: list[str]) -> None:
    network = build(name, num_classes=5)
    paths = {module: path for path, module in network.named_modules()}
    places = discover(network, (3, 32, 32), name).pre_activations
    assert [paths[batch_norm_of(network, place)] for place in places] == expected


def test_margins_are_the_teachers() -> None:
    student, teachers = building.networks()
    norm = teachers[0].get_submodule("layer2.0.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.uniform_(0.1, 2)
        norm.bias.uniform_(-1, 1)
    method = OFD(building.context(student, teachers))
    assert torch.equal(method.margins1, ofd_margins(norm.weight, norm.bias))
    assert method.margins0.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 64, rel=1e-6)


def test_the_deepest_stages_are_paired() -> None:
    student, teachers = building.networks(student="vgg8")  # four stages, the teacher has three
    method = OFD(building.context(student, teachers))
    assert [c[0].in_channels for c in method.connectors] == [256, 512, 512]  # type: ignore[index]
    assert method.notes() == ["compares the last 3 stages; the student has 4, the teacher 3"]


def test_refusals() -> None:
    student, teachers = building.networks(teacher="shufflenetv2")
    with pytest.raises(ValueError, match="no batch norm makes the map at 'layer1' of ShuffleNetV2"):
        OFD(building.context(student, teachers))
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="one teacher, got 2"):
        OFD(building.context(student, teachers))

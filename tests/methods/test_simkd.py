"""SimKD against a float64 loop, its parameter count against equation 5, its alignment rules."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from compress.methods import LossWeights, simkd_loss
from compress.methods.simkd import Projector, SimKD
from compress.models import build
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: a larger student map is pooled by a whole stride."""
    sizes = [specs.last_map.height for specs in (student, teacher) if specs.last_map]
    return len(sizes) < 2 or sizes[0] % sizes[1] != 0


def _oracle(projected: torch.Tensor, target: torch.Tensor) -> float:
    total, count = 0.0, 0
    for p, t in zip(projected.flatten().tolist(), target.flatten().tolist(), strict=True):
        total += (p - t) ** 2
        count += 1
    return total / count


def test_equals_the_formula() -> None:
    projected, target = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    assert float(simkd_loss(projected, target)) == pytest.approx(_oracle(projected, target))


def test_a_larger_teacher_map_is_average_pooled() -> None:
    projected = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    target = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pooled = torch.zeros_like(projected)
    for row in range(4):
        for column in range(4):
            block = target[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            pooled[:, :, row, column] = block.mean((2, 3))
    assert float(simkd_loss(projected, target)) == pytest.approx(_oracle(projected, pooled))


def test_zero_when_the_maps_are_equal() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert float(simkd_loss(maps, maps)) == 0


@pytest.mark.parametrize("channels", [(256, 256), (64, 256), (512, 256)])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_projector_parameters_are_those_of_equation_5(
    channels: tuple[int, int], reduction: int
) -> None:
    cs, ct = channels
    counted = sum(p.numel() for p in Projector(cs, ct, reduction).parameters())
    expected = ct * (cs + ct + 4) // reduction + 9 * ct**2 // reduction**2 + 2 * ct
    assert counted == expected


def test_a_depthwise_projector_has_one_filter_per_channel() -> None:
    counted = sum(p.numel() for p in Projector(64, 256, 2, depthwise=True).parameters())
    assert counted == 256 * (64 + 256 + 4) // 2 + 9 * 256 // 2 + 2 * 256


@pytest.mark.parametrize(
    ("reduction", "parameters"), [(1, 1_955_972), (2, 1_447_556), (4, 1_303_940), (8, 1_259_780)]
)
def test_deployed_parameters_of_the_papers_pair(reduction: int, parameters: int) -> None:
    student = build("resnet8x4", num_classes=100)
    teacher = build("resnet32x4", num_classes=100)
    context = building.context(student, [teacher])
    deployed = SimKD(context, reduction=reduction).deploy(student)
    # The student's own classifier is gone, the teacher's is there.
    assert sum(p.numel() for p in deployed.parameters()) == parameters


def test_the_teachers_classifier_is_copied_and_frozen() -> None:
    module = building.distillation(SimKD)
    teacher = module._teachers[0].network.get_submodule("fc")
    assert torch.equal(module.method.classifier.weight, teacher.weight)  # type: ignore[union-attr]
    assert torch.equal(module.method.classifier.bias, teacher.bias)  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in module.method.classifier.parameters())  # type: ignore[union-attr]


def test_a_perfect_projection_has_the_teachers_logits() -> None:
    module = building.distillation(SimKD).eval()
    teacher = module._teachers[0]
    images = torch.randn(2, *building.SHAPE)
    with torch.no_grad():
        shown = teacher(images)
        logits = module.method.classifier(shown.tensor("last_map").mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(logits, shown.tensor("logits"))


def test_deployed_network_takes_other_image_sizes() -> None:
    module = building.distillation(SimKD).eval()
    deployed = module.method.deploy(module.student).eval()
    assert deployed(torch.randn(1, 3, 48, 32)).shape == (1, building.CLASSES)


def test_a_finer_student_map_is_shrunk_by_a_fixed_stride() -> None:
    student = build("resnet8", num_classes=building.CLASSES)
    teacher = build("torchvision:resnet18", num_classes=building.CLASSES)
    context = building.context(student, [teacher])  # 4x4 against 1x1 at 16 pixels
    method = SimKD(context).eval()
    assert isinstance(method.shrink, torch.nn.AvgPool2d)
    assert method.deploy(student.eval())(torch.randn(2, 3, 32, 32)).shape == (2, building.CLASSES)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="one teacher"):
        SimKD(building.context(student, teachers))


def test_an_impossible_reduction_is_refused_in_words() -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="reduction is 1 to 256"):
        SimKD(building.context(student, teachers), reduction=257)


def test_prediction_and_term_come_from_one_pass_of_the_projector() -> None:
    module = (
        building.distillation(SimKD, weights=LossWeights(ce=1, kd=1, method=1)).double().train()
    )
    module._teachers[0].network.double()
    method, batch = module.method, building.first_batch(module)
    batch = dataclasses.replace(batch, images=tuple(i.double() for i in batch.images))
    assert isinstance(method, SimKD)
    expected = _expected_terms(module, batch.images[0], batch.labels)
    passes: list[int] = []
    method.projector.register_forward_hook(lambda *_: passes.append(1))
    norms = [m for m in method.projector if isinstance(m, torch.nn.BatchNorm2d)]
    terms = module(batch)
    assert len(passes) == 1
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1, 1]
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(expected, rel=1e-10)
    module.measure(batch)
    assert len(passes) == 2


def _expected_terms(
    module: building.Distillation, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """Each term from a copy of the networks, by loops."""
    own, known = copy.deepcopy(module._tapped), module._teachers[0]
    projector, classifier = copy.deepcopy(module.method.projector), module.method.classifier
    with torch.no_grad():
        projected = projector(own(images).tensor("last_map"))  # type: ignore[operator]
        z_s = classifier(projected.mean((2, 3))).tolist()  # type: ignore[operator]
        teacher = known(images)
    z_t = teacher.tensor("logits").tolist()  # type: ignore[union-attr]

    def softmax(row: list[float], temperature: float) -> list[float]:
        powers = [math.exp(z / temperature) for z in row]
        return [p / sum(powers) for p in powers]

    count, ce, soft = len(labels), 0.0, 0.0
    for own_row, known_row, label in zip(z_s, z_t, labels.tolist(), strict=True):
        ce -= math.log(softmax(own_row, 1)[label]) / count
        pairs = zip(softmax(known_row, 4), softmax(own_row, 4), strict=True)
        soft += 16 * sum(p * math.log(p / q) for p, q in pairs) / count
    return {"ce": ce, "soft": soft, "simkd": _oracle(projected, teacher.tensor("last_map"))}


def test_a_map_that_is_not_square_is_shrunk_by_a_stride_for_each_side() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    own = context.student.last_map
    assert own is not None
    assert (own.height, own.width) == (4, 4)

    def built(height: int, width: int) -> SimKD:
        wide = dataclasses.replace(own, height=height, width=width)
        specs = dataclasses.replace(context.student, last_map=wide)
        return SimKD(dataclasses.replace(context, student=specs))

    assert built(4, 8).shrink(torch.zeros(1, 3, 4, 8)).shape == (1, 3, 4, 4)
    assert built(8, 2).shrink(torch.zeros(1, 3, 8, 2)).shape == (1, 3, 4, 2)
    with pytest.raises(ValueError, match="6-pixel map is pooled to the teacher's 4"):
        built(4, 6)

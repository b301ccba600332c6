"""AB against a float64 loop over the formula, its zero, its connectors and phase, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn

from compress.methods import LossWeights, Method, ab_loss
from compress.methods.ab import AB
from compress.methods.blocks.feature_maps import MapRegressor
from compress.models import build
from tests.methods import building


def _oracle(student: list[Tensor], teacher: list[Tensor], margin: float) -> float:
    total = 0.0
    for layer, (own, target) in enumerate(zip(student, teacher, strict=True)):
        factor = 2.0 ** (layer - (len(student) - 1))
        for s, t in zip(own.flatten().tolist(), target.flatten().tolist(), strict=True):
            if t <= 0 and s > -margin:
                total += factor * (s + margin) ** 2 / len(own)
            if t > 0 and s <= margin:
                total += factor * (s - margin) ** 2 / len(own)
    return 3 / 1000 * total


def _maps(count: int = 3) -> list[Tensor]:
    shapes = [(2, 3, 4, 4), (2, 4, 2, 3), (2, 5, 1, 1)][:count]
    return [2 * torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("margin", [0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3])
def test_equals_the_formula(count: int, margin: float) -> None:
    student, teacher = _maps(count), _maps(count)
    teacher[0][0, 0, 0, 0] = 0  # counts as inactive
    got = ab_loss(student, teacher, margin)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, margin), rel=1e-12)


def test_zero_and_no_gradient_beyond_the_margin_on_the_teachers_side() -> None:
    teacher = torch.randn(2, 3, 4, 4)
    student = (teacher.sign() * (1 + torch.rand_like(teacher))).requires_grad_()
    loss = ab_loss([student], [teacher], 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0
    assert not gradient.any()
    assert float(ab_loss([-student.detach()], [teacher], 1.0)) > 0


def test_only_the_teachers_sign_counts() -> None:
    student, teacher = _maps(), _maps()
    torch.testing.assert_close(
        ab_loss(student, [9 * t for t in teacher], 1.0), ab_loss(student, teacher, 1.0)
    )


def _method(student: str, teacher: str, **arguments: float) -> AB:
    own, teachers = building.networks(student=student, teacher=teacher)
    return AB(building.context(own, teachers), **arguments)  # type: ignore[arg-type]


def test_connectors_are_the_identity_where_maps_are_equal() -> None:
    assert all(isinstance(c, nn.Identity) for c in _method("resnet8", "resnet14").connectors)
    for connector in _method("resnet8", "resnet8x4").connectors:
        assert isinstance(connector, MapRegressor)
        assert not any(isinstance(part, nn.ReLU) for part in connector)


@pytest.mark.parametrize("teacher", ["vgg8", "torchvision:resnet18", "resnet8x4"])
def test_unequal_sizes_and_stage_counts_meet(teacher: str) -> None:
    student = build("resnet8", num_classes=building.CLASSES)
    network = build(teacher, num_classes=building.CLASSES).eval()
    context = building.context(student, [network])
    count = len(context.teachers[0].taps.stages)
    method = AB(context)
    assert len(method.connectors) == 3
    assert bool(method.notes()) == (count != 3)
    module = building.Distillation(
        student,
        [network],
        method,
        LossWeights(0, 0, 1),
        building.Classification(),
        kd_temperature=4.0,
    )
    terms = module(next(building.batches(method).epoch(0)))
    assert terms["ab"].isfinite()


def test_the_main_training_has_no_term_unless_asked() -> None:
    for protocol, named in (("crd", ["ce"]), ("simkd", ["ce", "soft"])):
        module = building.distillation(AB, weights=AB.protocols[protocol])
        batch = building.first_batch(module)
        assert [*module(batch)] == named
        module.begin_phase(None, batch)
        assert not any(p.requires_grad for p in module.method.parameters())
    module = building.distillation(AB, weights=LossWeights(1, 0, 2))
    main = module.eval()(batch)["ab"]
    (phase,) = module.method.phases()
    module.begin_phase(phase, batch)
    torch.testing.assert_close(main, 2 * module.eval()(batch)["ab"])


def test_the_phase_trains_all_that_the_stages_read_and_the_connectors() -> None:
    module = building.distillation(AB)
    (phase,) = module.method.phases()
    assert (phase.epochs, phase.lr) == (30, None)
    module.begin_phase(phase, building.first_batch(module))
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in module.named_parameters()} - {
        "student.fc.weight",
        "student.fc.bias",
    }


def test_a_frozen_student_parameter_stays_frozen() -> None:
    student, teachers = building.networks()
    method: Method = AB(building.context(student, teachers))
    first = student.get_submodule("conv1").weight
    first.requires_grad_(False)  # type: ignore[operator]
    module = building.Distillation(
        student,
        teachers,
        method,
        LossWeights(1, 0, 0),
        building.Classification(),
        kd_temperature=4.0,
    )
    (phase,) = method.phases()
    module.begin_phase(phase, next(building.batches(method).epoch(0)))
    assert not first.requires_grad
    assert not any("_student" in key for key in module.state_dict())


def test_no_epochs_no_phase() -> None:
    assert _method("resnet8", "resnet8x4", pretrain_epochs=0).phases() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("margin", 0.0), ("margin", math.nan), ("margin", math.inf), ("pretrain_epochs", -1)],
)
def test_impossible_values_are_refused_in_words(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*, got {value}"):
        _method("resnet8", "resnet8x4", **{name: value})


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher"):
        AB(building.context(student, teachers))

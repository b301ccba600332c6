"""SimKD against a float64 loop, its parameter count against equation 5, its alignment rules."""

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.accounting import pruning_columns
from compress.methods import LossWeights, simkd_loss, simkd_output_loss
from compress.methods.blocks.projectors import Projector, ProjectorKind
from compress.methods.simkd import Combination, LossPlace, SimKD
from compress.models import build
from compress.models.folding import fold_batchnorm
from compress.taps import Tapped, Taps, TapSpecs
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


# Kind of Table 5 -> parameters, with m = C_t / r and the batch norms' scales and shifts.
KINDS: dict[ProjectorKind, Callable[[int, int, int], int]] = {
    "1x1": lambda cs, ct, m: cs * ct + 2 * ct,
    "1x1-1x1": lambda cs, ct, m: (cs * m + 2 * m) + (m * ct + 2 * ct),
    "1x1-dw3x3-1x1": lambda cs, ct, m: (cs * m + 2 * m) + (9 * m + 2 * m) + (m * ct + 2 * ct),
    "1x1-3x3-1x1": lambda cs, ct, m: (cs * m + 2 * m) + (9 * m * m + 2 * m) + (m * ct + 2 * ct),
    "vector": lambda cs, ct, m: (cs * m + 2 * m) + (m * m + 2 * m) + (m * ct + 2 * ct),
}


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_the_kinds_of_table_5(kind: ProjectorKind, reduction: int) -> None:
    counted = sum(p.numel() for p in Projector(64, 256, reduction, kind=kind).parameters())
    assert counted == KINDS[kind](64, 256, 256 // reduction)


@pytest.mark.parametrize("kind", KINDS)
def test_a_projector_of_any_kind_is_its_layers_in_the_papers_order(kind: ProjectorKind) -> None:
    layers = [*Projector(6, 8, 2, kind=kind)]
    expected = [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU] * (len(layers) // 3)
    assert [type(layer) for layer in layers] == expected
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    sizes = [f"{'dw' * (c.groups > 1)}{c.kernel_size[0]}x{c.kernel_size[1]}" for c in convolutions]
    assert "-".join(sizes) == ("1x1-1x1-1x1" if kind == "vector" else kind)
    assert all(c.bias is None for c in convolutions)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_by_its_term_and_ships_what_it_predicts(kind: ProjectorKind) -> None:
    student, (teacher,) = building.networks()
    method = SimKD(building.context(student, [teacher]), projector=kind)
    images = torch.randn(3, *building.SHAPE)
    tapped = Tapped(student, method.context.student, ("last_map",))
    known = Tapped(teacher.eval(), method.context.teachers[0].taps, ("last_map",))
    shown, target = method.extend(tapped(images)), known(images)
    size = (1, 1) if kind == "vector" else (4, 4)
    assert shown.tensors("projected")[0].shape == (3, 256, *size)
    value = method([shown], [[target]], batch=None)["simkd"]  # type: ignore[arg-type]
    maps = target.tensor("last_map")
    wanted = maps.mean((2, 3), keepdim=True) if kind == "vector" else maps
    expected = (shown.tensors("projected")[0] - wanted).square().mean()
    assert float(value.detach()) == pytest.approx(float(expected.detach()))
    value.backward()
    assert all(p.grad is not None for p in method.projector.parameters())
    student.eval(), method.eval()
    predicted = method.logits(method.extend(tapped(images)))
    torch.testing.assert_close(method.deploy(student).eval()(images), predicted)


def test_depthwise_is_the_earlier_name_of_a_projector() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    earlier = SimKD(context, depthwise=True).projector
    named = SimKD(context, projector="1x1-dw3x3-1x1").projector
    assert str(earlier) == str(named)
    with pytest.raises(ValueError, match="give one of the two, got projector 1x1 beside it"):
        SimKD(context, depthwise=True, projector="1x1")


def _output_oracle(projected: Tensor, target: Tensor, weight: Tensor) -> float:
    total, (count, channels, height, width), classes = 0.0, projected.shape, len(weight)
    pixels = target.shape[2] * target.shape[3]
    for n in range(count):
        for k in range(classes):
            difference = 0.0
            for c in range(channels):
                own = sum(float(x) for x in projected[n, c].flatten()) / (height * width)
                known = sum(float(x) for x in target[n, c].flatten()) / pixels
                difference += float(weight[k, c]) * (own - known)
            total += difference**2
    return total / (count * classes)


def test_the_loss_at_the_output_equals_the_formula() -> None:
    projected = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.randn(5, 3, dtype=torch.float64)
    loss = simkd_output_loss(projected, target, weight)
    expected_loss = _output_oracle(projected.detach(), target, weight)
    assert float(loss.detach()) == pytest.approx(expected_loss)
    # Table S.7: the gradient is that of the input's loss, times W^T W.
    (gradient,) = torch.autograd.grad(loss, projected)
    difference = (projected.detach() - target.mean((2, 3), keepdim=True)).mean((2, 3))
    expected = 2 * difference @ weight.T @ weight / (2 * 5 * 4)
    torch.testing.assert_close(gradient, expected[:, :, None, None].expand_as(gradient))


@pytest.mark.parametrize(
    ("place", "names"),
    [("input", ["simkd"]), ("output", ["simkd_output"]), ("both", ["simkd", "simkd_output"])],
)
def test_the_loss_is_where_it_is_asked_for(place: LossPlace, names: list[str]) -> None:
    student, (teacher,) = building.networks()
    method = SimKD(building.context(student, [teacher]), loss_place=place)
    shown = Taps(projected=[torch.rand(2, 256, 4, 4, requires_grad=True)])
    target = Taps(last_map=torch.rand(2, 256, 4, 4))
    terms = method([shown], [[target]], batch=None)  # type: ignore[arg-type]
    assert list(terms) == names
    if "simkd_output" in terms:  # the classifier's bias is on both sides
        known = method.classifier(target.tensor("last_map").mean((2, 3)))
        expected = (method.logits(shown) - known).square().mean()
        torch.testing.assert_close(terms["simkd_output"], expected)


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


def test_several_teachers_have_projectors_of_their_own_and_the_mean_of_their_losses() -> None:
    module = building.distillation(SimKD, teachers=2).eval()
    method, images = module.method, building.first_batch(module).images[0]
    assert isinstance(method, SimKD)
    own = method.extend(module._tapped(images))
    known = [teacher(images) for teacher in module._teachers]
    got = method([own], [[taps] for taps in known], building.first_batch(module))["simkd"]
    losses = [
        _oracle(projected, taps.tensor("last_map"))
        for projected, taps in zip(own.tensors("projected"), known, strict=True)
    ]
    assert losses[0] != losses[1]
    assert float(got.detach()) == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize("combine", ["logits", "predictions"])
def test_what_ships_averages_what_the_teachers_classifiers_say(combine: Combination) -> None:
    student = build("resnet8", num_classes=building.CLASSES)  # a last map of 4x4
    names = ("resnet8x4", "vgg8")  # of 4x4 with 256 channels, of 2x2 with 512
    teachers = [build(name, num_classes=building.CLASSES, seed=3) for name in names]
    method = SimKD(building.context(student, teachers), combine=combine).eval()
    images = torch.randn(3, *building.SHAPE)
    with torch.no_grad():
        got = method.deploy(student.eval()).eval()(images)
        last = student.get_submodule("layer3")(
            student.get_submodule("layer2")(student.get_submodule("layer1")(_stem(student, images)))
        )
        said = []
        for branch, teacher in zip(method.branches, teachers, strict=True):
            vector = branch.projector(branch.shrink(last)).mean((2, 3))
            classifier = teacher.get_submodule("fc" if hasattr(teacher, "fc") else "classifier")
            said.append(classifier(vector))
    assert method.branches[1].shrink(last).shape[2:] == (2, 2)
    added = sum(p.numel() for branch in method.branches for p in branch.projector.parameters())
    columns = pruning_columns(method.deploy(student), student=1000, teacher=10**7)
    assert columns["projector_parameters"] == added
    folded = fold_batchnorm(method.deploy(student).eval())
    assert len(folded.folded) == 9 + 2 * 3
    assert folded.not_folded == []
    torch.testing.assert_close(folded.network(images), got, rtol=1e-4, atol=1e-4)
    if combine == "logits":
        torch.testing.assert_close(got, (said[0] + said[1]) / 2)
    else:
        mean = (said[0].softmax(1) + said[1].softmax(1)) / 2
        torch.testing.assert_close(got.softmax(1), mean)


def _stem(student: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        maps: Tensor = student.get_submodule("conv1")(images)
        return torch.relu(student.get_submodule("bn1")(maps))


def test_one_teacher_has_the_names_that_its_files_always_had() -> None:
    module = building.distillation(SimKD)
    assert {key.split(".")[0] for key in module.method.state_dict()} == {"projector", "classifier"}
    deployed = module.method.deploy(module.student)
    assert {key.split(".")[0] for key in deployed.state_dict()} == {
        "encoder",
        "projector",
        "classifier",
    }


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

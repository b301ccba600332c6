"""FSP against a float64 loop over the formula, its invariances, its phase, refusals."""

import dataclasses

import pytest
import torch
from torch import Tensor

from compress.methods import LossWeights, MethodContext, fsp_loss
from compress.methods.fsp import FSP
from compress.taps import MapSpec, TapSpecs
from tests.methods import building

EQUAL = ("resnet8", "resnet14")


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: nothing is trained between maps of unequal widths."""
    widths = [tuple(m.channels for m in specs.stages) for specs in (teacher, student)]
    return widths[0] != widths[1]


def _flow(fine: Tensor, coarse: Tensor) -> list[float]:
    """Both maps (C, H, W) of one image and one size."""
    _, height, width = fine.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    return [
        sum(float(a[y, x]) * float(b[y, x]) for y, x in pixels) / len(pixels)
        for a in coarse
        for b in fine
    ]


def _oracle(student: list[Tensor], teacher: list[Tensor]) -> float:
    """The maps of a network all of one size."""
    total = 0.0
    for i in range(len(student) - 1):
        squares = [
            (a - b) ** 2
            for n in range(len(student[0]))
            for a, b in zip(
                _flow(student[i][n], student[i + 1][n]),
                _flow(teacher[i][n], teacher[i + 1][n]),
                strict=True,
            )
        ]
        total += sum(squares) / len(squares)
    return total


def _maps(*sizes: tuple[int, int]) -> list[Tensor]:
    widths = (2, 3, 4)
    return [
        torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(widths, sizes, strict=True)
    ]


def test_equals_the_formula_with_unequal_sizes_of_the_two_networks() -> None:
    student, teacher = _maps((4, 3), (4, 3), (4, 3)), _maps((2, 2), (2, 2), (2, 2))
    got = fsp_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-10)


def _halved(maps: Tensor) -> Tensor:
    count, channels, height, width = maps.shape
    return maps.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))


def test_the_finer_of_two_maps_is_average_pooled() -> None:
    student, teacher = _maps((8, 8), (4, 4), (4, 4)), _maps((2, 2), (4, 4), (4, 4))
    expected = 0.0
    # The first pair is shrunk in the student (its fine map) and in the teacher (its deep one).
    first = [_halved(student[0]), student[1]], [teacher[0], _halved(teacher[1])]
    for own, target in (first, (student[1:], teacher[1:])):
        expected += _oracle(own, target)
    assert float(fsp_loss(student, teacher)) == pytest.approx(expected, rel=1e-10)


def test_zero_for_equal_negated_and_mirrored_maps() -> None:
    maps = _maps((8, 8), (4, 4), (2, 2))
    for other in (maps, [-m for m in maps], [m.flip(3) for m in maps]):
        assert float(fsp_loss(other, maps)) == pytest.approx(0, abs=1e-20)
    assert float(fsp_loss([m + 1 for m in maps], maps)) > 1e-2


def _context(student: str, teacher: str) -> MethodContext:
    own, teachers = building.networks(student=student, teacher=teacher)
    return building.context(own, teachers)


def _without_stem(context: MethodContext, *who: str) -> MethodContext:
    teacher = context.teachers[0]
    if "student" in who:
        context = dataclasses.replace(context, student=_stemless(context.student))
    if "teacher" in who:
        known = dataclasses.replace(teacher, taps=_stemless(teacher.taps))
        context = dataclasses.replace(context, teachers=(known,))
    return context


def _stemless(specs: TapSpecs) -> TapSpecs:
    return dataclasses.replace(specs, stem=None)


@pytest.mark.parametrize("who", [(), ("student",), ("teacher",), ("student", "teacher")])
def test_a_stem_that_one_network_lacks_is_left_out_for_both(who: tuple[str, ...]) -> None:
    student, teachers = building.networks(student=EQUAL[0], teacher=EQUAL[1])
    method = FSP(_without_stem(building.context(student, teachers), *who))
    module = building.Distillation(
        student,
        teachers,
        method,
        LossWeights(0, 0, 1),
        building.Classification(),
        kd_temperature=4.0,
    ).eval()
    batch = next(building.batches(method).epoch(0))
    with torch.no_grad():
        got = module(batch)["fsp"]
        tapped = [module._tapped, *module._teachers]
        names = ["layer1", "layer2", "layer3"]
        names = names if who else ["relu", *names]
        maps = [_outputs(t.network, names, batch.images[0]) for t in tapped]
    torch.testing.assert_close(got, fsp_loss(*maps))
    assert bool(method.notes()) == (len(who) == 1)
    assert all(f"the {name} has no stem map" in method.notes()[0] for name in who[: 2 - len(who)])


def _outputs(network: torch.nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(n).register_forward_hook(lambda _m, _i, o, n=n: seen.update({n: o}))
        for n in names
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return [seen[n] for n in names]


def test_the_main_training_has_no_term_unless_asked() -> None:
    student, teachers = building.networks(student=EQUAL[0], teacher=EQUAL[1])
    for weights, named in (
        (FSP.protocols["crd"], ["ce"]),
        (FSP.protocols["simkd"], ["ce", "soft"]),
        (LossWeights(1, 0, 2), ["ce", "fsp"]),
    ):
        method = FSP(building.context(student, teachers))
        module = building.Distillation(
            student, teachers, method, weights, building.Classification(), kd_temperature=4.0
        )
        batch = next(building.batches(method).epoch(0))
        terms = module.eval()(batch)
        assert [*terms] == named
    (phase,) = method.phases()
    assert (phase.epochs, phase.lr) == (30, None)
    module.begin_phase(phase, batch)
    torch.testing.assert_close(terms["fsp"], 2 * module.eval()(batch)["fsp"])
    learning = {n for n, p in student.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in student.named_parameters()} - {"fc.weight", "fc.bias"}
    assert [*method.parameters()] == []


def test_no_epochs_no_phase() -> None:
    assert FSP(_context(*EQUAL), pretrain_epochs=0).phases() == []


def test_negative_epochs_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="pretrain_epochs is at least 0, got -1"):
        FSP(_context(*EQUAL), pretrain_epochs=-1)


@pytest.mark.parametrize(
    ("teacher", "widths"),
    [("resnet8x4", "32, 64, 128, 256"), ("vgg8", "64, 128, 256, 512, 512")],
)
def test_unequal_widths_and_counts_are_refused_with_both_named(teacher: str, widths: str) -> None:
    with pytest.raises(ValueError, match=f"16, 16, 32, 64 in the student and {widths} in"):
        FSP(_context("resnet8", teacher))


def test_a_stem_of_another_width_is_refused() -> None:
    context = _context(*EQUAL)
    stem = MapSpec("relu", 24, 16, 16, 1)
    context = dataclasses.replace(context, student=dataclasses.replace(context.student, stem=stem))
    with pytest.raises(ValueError, match="24, 16, 32, 64 in the student and 16, 16, 32, 64 in"):
        FSP(context)


def test_networks_without_two_maps_are_refused_in_words() -> None:
    context = _without_stem(_context(*EQUAL), "student", "teacher")
    teacher = context.teachers[0]
    for count, listed in ((0, "none"), (1, "16")):
        known = dataclasses.replace(teacher.taps, stages=teacher.taps.stages[:count])
        own = dataclasses.replace(context.student, stages=context.student.stages[:count])
        short = dataclasses.replace(
            context, student=own, teachers=(dataclasses.replace(teacher, taps=known),)
        )
        with pytest.raises(ValueError, match=f"two or more .* got {listed} in the student"):
            FSP(short)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2, student=EQUAL[0], teacher=EQUAL[1])
    with pytest.raises(ValueError, match="the method reads one teacher"):
        FSP(building.context(student, teachers))

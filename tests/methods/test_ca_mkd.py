"""CA-MKD against float64 loops over both of its parts, and when the features join."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress.methods import aveg_loss, ca_mkd_feature_loss, ca_mkd_loss
from compress.methods.ca_mkd import CAMKD, confidence_weights, resize
from compress.models import build
from tests.methods import building
from tests.methods.test_aveg import divergence, softmax

LABELS = torch.tensor([0, 2, 1, 1])


def _weights(logits: list[Tensor]) -> list[list[float]]:
    """Of teacher i and sample n, by loops."""
    losses = [
        [
            -math.log(softmax(row, 1.0)[y])
            for row, y in zip(z.tolist(), LABELS.tolist(), strict=True)
        ]
        for z in logits
    ]
    columns = [softmax(list(column), 1.0) for column in zip(*losses, strict=True)]
    return [
        [(1 - share) / (len(logits) - 1) for share in one] for one in zip(*columns, strict=True)
    ]


def test_the_soft_part_equals_the_formula() -> None:
    student, *known = 3 * torch.randn(4, 4, 3, dtype=torch.float64)
    expected, weights = 0.0, _weights(known)
    for i, teacher in enumerate(known):
        for n, (own, one) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
            expected += weights[i][n] * divergence(one, own, 4.0)
    expected /= len(student) * len(known)
    got = float(ca_mkd_loss(student, known, LABELS, 4.0))
    assert got == pytest.approx(expected, rel=1e-12)


def test_the_feature_part_equals_the_formula() -> None:
    widths = (2, 3, 5)
    projected = [torch.randn(4, c, 2, 2, dtype=torch.float64) for c in widths]
    maps = [torch.randn_like(own) for own in projected]
    classified = list(3 * torch.randn(3, 4, 3, dtype=torch.float64))
    expected, weights = 0.0, _weights(classified)
    for i, (own, known) in enumerate(zip(projected, maps, strict=True)):
        for n in range(4):
            pairs = zip(own[n].flatten().tolist(), known[n].flatten().tolist(), strict=True)
            squares = [(a - b) ** 2 for a, b in pairs]
            expected += weights[i][n] * sum(squares) / len(squares)
    expected /= 4 * len(widths)
    got = float(ca_mkd_feature_loss(projected, maps, classified, LABELS))
    assert got == pytest.approx(expected, rel=1e-12)


def test_the_weights_of_the_features_carry_a_gradient_unless_told_otherwise() -> None:
    projected = [torch.randn(4, 2, 1, 1, dtype=torch.float64) for _ in range(2)]
    maps = [torch.randn_like(own) for own in projected]
    classified = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = ca_mkd_feature_loss(projected, maps, classified, LABELS)
    assert torch.autograd.grad(loss, classified[0])[0].abs().sum() > 0
    assert not ca_mkd_feature_loss(projected, maps, classified, LABELS, True).requires_grad


def test_the_surer_teacher_weighs_more_and_all_sum_to_one() -> None:
    right = 9 * torch.nn.functional.one_hot(LABELS, 3).double()
    weights = confidence_weights([right, -right, 0 * right], LABELS)
    torch.testing.assert_close(weights.sum(0), torch.ones(4, dtype=torch.float64))
    assert bool((weights[0] > weights[2]).all() and (weights[2] > weights[1]).all())


def test_equally_sure_teachers_are_averaged_and_the_sum_divided_by_their_number() -> None:
    student, known = torch.randn(2, 4, 3, dtype=torch.float64)
    got = ca_mkd_loss(student, [known] * 3, LABELS, 4.0)
    torch.testing.assert_close(got, aveg_loss(student, [known] * 3, 4.0) / 3)


def test_the_features_join_after_an_epoch_and_each_teacher_gets_its_own_size() -> None:
    student = build("resnet8", num_classes=building.CLASSES)  # a last map of 4x4
    names = ("resnet8x4", "torchvision:resnet18", "vgg8")  # of 4x4, 1x1 and 2x2
    teachers = [build(name, num_classes=building.CLASSES) for name in names]
    method = CAMKD(building.context(student, teachers))
    sizes = [t.taps.last_map.shape[1:] for t in method.context.teachers if t.taps.last_map]
    assert len({*sizes}) == 3
    for reader, size in zip(method.readers, sizes, strict=True):
        projected, logits = reader(torch.randn(2, 64, 4, 4), size)
        assert projected.shape[2:] == size
        assert logits.shape == (2, building.CLASSES)
    module = building.distillation(CAMKD)
    batch = building.first_batch(module)
    assert [*module(batch)] == ["ce", "ca_mkd"]
    assert [*module(replace(batch, epoch=1))] == ["ce", "ca_mkd", "features"]


def test_a_reader_classifies_as_its_teacher_does() -> None:
    module = building.distillation(CAMKD).eval()
    assert isinstance(module.method, CAMKD)
    for reader, teacher in zip(module.method.readers, module._teachers, strict=True):
        reader.connector = torch.nn.Identity()
        taps = teacher(torch.randn(2, *building.SHAPE))
        _, logits = reader(taps.tensor("last_map"), (4, 4))
        torch.testing.assert_close(logits, taps.tensor("logits"))


def test_maps_are_pooled_down_and_enlarged_bilinearly() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(resize(maps, (4, 4)), maps)
    line = resize(maps[..., :1, :2], (1, 4)).flatten().tolist()
    assert line == pytest.approx([0, 0.25, 0.75, 1])
    assert resize(maps, (2, 8)).shape == (1, 1, 2, 8)


@pytest.mark.parametrize(
    ("teachers", "arguments", "message"),
    [
        (1, {}, "two or more, got 1"),
        (2, {"temperature": 0.0}, "above 0"),
        (2, {"epochs_without_features": -1}, "at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    teachers: int, arguments: dict[str, float], message: str
) -> None:
    student, networks = building.networks(teachers)
    with pytest.raises(ValueError, match=message):
        CAMKD(building.context(student, networks), **arguments)  # type: ignore[arg-type]

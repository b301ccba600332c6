"""IFVD: the formula, pixel by pixel."""

import math

import pytest
import torch
from torch import Tensor

from compress.methods.ifvd import ifvd_loss
from compress.taps import TapSpecs

CLASSES = 3


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    return not student.is_dense


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 4, 5, 6, generator=draw, dtype=torch.float64)
    teacher = torch.randn(2, 7, 5, 6, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, CLASSES + 1, (2, 5, 6), generator=draw)
    return student, teacher, labels.where(labels < CLASSES, 255)


def variation(features: Tensor, labels: Tensor, y: int, x: int) -> float:
    own, label = features[:, y, x].tolist(), int(labels[y, x])
    if label == 255:
        return 1.0
    members = [
        features[:, i, j].tolist() for i in range(5) for j in range(6) if labels[i, j] == label
    ]
    mean = [sum(column) / (len(members) + 1e-6) for column in zip(*members, strict=True)]
    dot = sum(a * b for a, b in zip(own, mean, strict=True))
    return dot / math.hypot(*own) / math.hypot(*mean)


def test_the_loss_is_that_of_the_formula() -> None:
    student, teacher, labels = example()
    total = 0.0
    for n in range(2):
        for y in range(5):
            for x in range(6):
                s, t = (variation(maps[n], labels[n], y, x) for maps in (student, teacher))
                total += (s - t) ** 2
    loss = ifvd_loss(student, teacher, labels, CLASSES)
    assert float(loss) == pytest.approx(total / 60, rel=1e-9)


def test_pixels_without_a_class_add_nothing_and_get_no_gradient() -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    ifvd_loss(student, teacher, labels, CLASSES).backward()
    assert student.grad is not None
    void = (labels == 255)[:, None].expand_as(student)
    assert float(student.grad[void].abs().max()) < 1e-12
    assert float(student.grad[~void].abs().max()) > 1e-4


def test_only_void_or_equal_maps_have_no_loss() -> None:
    student, teacher, labels = example()
    nothing = torch.full_like(labels, 255)
    assert float(ifvd_loss(student, teacher, nothing, CLASSES)) < 1e-20
    assert float(ifvd_loss(2 * teacher, teacher, labels, CLASSES)) < 1e-12


def test_classes_that_are_renamed_change_nothing() -> None:
    student, teacher, labels = example()
    renamed = torch.tensor([2, 0, 1, *[255] * 253])[labels]
    one, other = (ifvd_loss(student, teacher, m, CLASSES) for m in (labels, renamed))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)

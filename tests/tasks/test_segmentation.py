"""Segmentation: void weighs nothing over parts and processes, windows cover, IoU by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.tasks import Segmentation, task_for
from compress.tasks.segmentation import sliding_logits
from tests.methods import building

VOID = 255


def labels(count: int = 4) -> Tensor:
    drawn = torch.randint(0, 4, (count, 6, 8), generator=torch.Generator().manual_seed(0))
    return drawn.where(drawn < 3, VOID)


def test_the_loss_is_the_mean_cross_entropy_of_pixels_that_have_a_class() -> None:
    logits = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(1)).double()
    truth, total, count = labels(), 0.0, 0
    for n in range(4):
        for y in range(6):
            for x in range(8):
                label = int(truth[n, y, x])
                if label != VOID:
                    scores = logits[n, :, y, x].tolist()
                    total += math.log(sum(map(math.exp, scores))) - scores[label]
                    count += 1
    loss = Segmentation().loss(logits, truth)
    assert float(loss) == pytest.approx(total / count, rel=1e-12)


def test_what_is_said_of_void_pixels_changes_nothing() -> None:
    task, truth = Segmentation(), labels()
    logits = torch.randn(4, 3, 6, 8)
    other = torch.where((truth == VOID)[:, None], 100 * torch.randn(4, 3, 6, 8), logits)
    assert torch.equal(task.loss(logits, truth), task.loss(other, truth))
    assert float(task.loss(logits, torch.full_like(truth, VOID))) == 0


def test_parts_of_unequal_void_add_up_to_the_loss_of_the_step() -> None:
    """Each part's loss counts its share of the images, as the loop weighs it."""
    module = building.distillation(building.METHODS["skd"])
    batch = building.first_batch(module)
    task, logits = Segmentation(), torch.randn(8, building.CLASSES, 8, 8).double()
    whole = task.loss_of(batch)(logits, batch.labels)
    assert batch.counted is not None
    assert int(batch.counted) == int((batch.labels != VOID).sum())
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 3), slice(3, 8)):
        part = building.part(batch, rows)
        total += part.share * task.loss_of(part)(logits[rows], part.labels)
    torch.testing.assert_close(total, whole)
    every_second = sum(
        part.share * task.loss_of(part)(logits[number::2], part.labels)
        for number, part in enumerate(batch.split(2))
    )
    torch.testing.assert_close(every_second, whole)


class Colours(nn.Module):
    """The class of a pixel is its brightest channel, at half the size."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::2, ::2]


def test_metrics_are_those_of_one_confusion_matrix() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]], [[2, VOID, 1, 0]]]).repeat_interleave(4, 1)
    said = torch.tensor([[[0, 1, 1, 1]], [[2, 2, 1, 1]]]).repeat_interleave(4, 1)
    images = torch.eye(3)[said].permute(0, 3, 1, 2)
    task = Segmentation()

    class Says(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    metrics = task.evaluate(Says(), [(images[:1], truth[:1]), (images[1:], truth[1:])])
    # intersections 1, 3, 1 of unions 3, 5, 1, void left out
    assert metrics["miou_percent"] == pytest.approx(100 * (1 / 3 + 3 / 5 + 1) / 3)
    assert metrics["pixel_accuracy_percent"] == pytest.approx(100 * 5 / 7)
    confusion = task.predict(Says(), [(images, truth)])["confusion"]
    assert confusion.shape == (2, 3, 3)
    assert confusion.sum() == 28


@pytest.mark.parametrize("window", [8, 11, 40])
def test_windows_of_a_network_that_looks_nowhere_else_change_nothing(window: int) -> None:
    images = torch.randn(1, 3, 17, 29)

    class Here(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * images

    torch.testing.assert_close(sliding_logits(Here(), images, window), 2 * images)


def test_a_teacher_that_says_one_class_everywhere_is_refused() -> None:
    task = Segmentation()
    words = task.weakness({"miou_percent": 20.0}, None, num_classes=4, images=10)
    assert words is not None
    assert "one class everywhere reaches up to 25.00 %" in words
    assert task.weakness({"miou_percent": 26.0}, None, num_classes=4, images=10) is None


def test_the_task_is_named_by_the_recipe() -> None:
    assert isinstance(task_for("segmentation", labels=True, window=9), Segmentation)
    assert not task_for("classification", labels=True).is_dense


def test_an_auxiliary_head_learns_beside_the_student_and_does_not_ship() -> None:
    module = building.distillation(building.METHODS["skd"])
    task = Segmentation()
    head = task.auxiliary(module.method.context.student)
    assert head is not None
    beside = building.Distillation(
        module.student,
        [tapped.network for tapped in module._teachers],
        module.method,
        module.weights,
        task,
        kd_temperature=1.0,
        auxiliary=head,
    )
    batch = replace(building.first_batch(module))
    terms = beside(batch)
    assert float(terms["auxiliary"].detach()) > 0
    beside.begin_phase(None, batch)
    assert all(p.requires_grad for p in head.parameters())
    assert not [name for name, _ in module.student.named_parameters() if "auxiliary" in name]

"""Segmentation: the confusion matrix against loops, the pyramid head's shapes, its loss."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.data.dense.layouts import voc_segmentation
from compress.model_files import Encoder
from compress.tasks.confusion import majority
from eval.data import IGNORE_INDEX, SegmentationData
from eval.segmentation import (
    PyramidPoolingHead,
    SegmentationLoss,
    Segmenter,
    confusion_matrix,
    iou_per_class,
    segmentation_metrics,
)
from eval.segmentation.task import predict
from eval.segmentation.views import example

Write = Callable[..., Path]


def mean_iou_by_sets(truth: Tensor, prediction: Tensor, classes: int) -> float:
    """Float64 oracle: sets of pixel positions per class, void positions taken out first."""
    pairs = zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True)
    pixels = [(i, t, p) for i, (t, p) in enumerate(pairs) if t != IGNORE_INDEX]
    ratios = []
    for label in range(classes):
        true = {i for i, t, _ in pixels if t == label}
        said = {i for i, _, p in pixels if p == label}
        if true | said:
            ratios.append(len(true & said) / len(true | said))
    return 100 * sum(ratios) / len(ratios)


def read(root: Path, classes: tuple[str, ...] = ("background", "0", "1", "2")) -> SegmentationData:
    return voc_segmentation(root=str(root), classes=classes)


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_counting_sets(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (3, 9, 7), generator=draw)
    truth[torch.rand(truth.shape, generator=draw) < 0.2] = IGNORE_INDEX
    prediction = torch.randint(0, 5, (3, 9, 7), generator=draw)  # class 5 of 6 never occurs
    whole = confusion_matrix(truth, prediction, classes=6, ignore_index=IGNORE_INDEX)
    parts = sum(
        confusion_matrix(t, p, classes=6, ignore_index=IGNORE_INDEX)
        for t, p in zip(truth, prediction, strict=True)
    )
    assert torch.equal(whole, parts)
    metrics = segmentation_metrics(whole)
    assert metrics["miou_percent"] == pytest.approx(mean_iou_by_sets(truth, prediction, 6))
    assert metrics["absent_classes"] == 1
    valid = truth != IGNORE_INDEX
    accuracy = (truth == prediction)[valid].double().mean().item()
    assert metrics["pixel_accuracy_percent"] == pytest.approx(100 * accuracy)


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    truth, prediction = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1])
    confusion = confusion_matrix(truth, prediction, classes=3, ignore_index=IGNORE_INDEX)
    assert confusion.tolist() == [[2, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert iou_per_class(confusion)[:2].tolist() == [0.5, 0.0]
    assert iou_per_class(confusion)[2].isnan()


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (16, 16), (30, 41)])
def test_head_keeps_the_map_size(size: tuple[int, int]) -> None:
    head = PyramidPoolingHead(8, classes=5, width=4)
    assert head(torch.rand(2, 8, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (61, 37)])
def test_logits_have_the_size_of_the_image(encoder: Encoder, size: tuple[int, int]) -> None:
    segmenter = Segmenter(encoder, classes=3, width=4, seed=0)
    assert segmenter(torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_constant_map_gives_constant_branches() -> None:
    # Every bin of a constant map is that constant, so the logits do not depend on the place.
    head = PyramidPoolingHead(4, classes=3, width=4).eval()
    head.merge[0] = torch.nn.Conv2d(20, 4, 1)
    logits = head(torch.full((1, 4, 9, 6), 0.7))
    torch.testing.assert_close(logits, logits[:, :, :1, :1].expand_as(logits))


def test_void_pixels_carry_no_gradient(encoder: Encoder) -> None:
    segmenter = Segmenter(encoder, classes=3, width=4, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    masks = torch.randint(0, 3, (2, 32, 32))
    masks[:, :16] = IGNORE_INDEX
    logits = segmenter(images).detach().double()
    chosen = [
        -torch.log_softmax(logits[n, :, y, x], 0)[masks[n, y, x]]
        for n in range(2)
        for y in range(16, 32)
        for x in range(32)
    ]
    loss = SegmentationLoss(segmenter, IGNORE_INDEX)((images, masks))["ce"]
    assert loss.item() == pytest.approx(torch.stack(chosen).mean().item(), rel=1e-5)


def test_loss_falls_and_reaches_every_parameter(encoder: Encoder, scenes: Write) -> None:
    data = read(scenes())
    pairs = [example(item, None) for item in data.train]
    images = encoder.preprocessing.normalise(torch.stack([pixels for pixels, _ in pairs]))
    masks = torch.stack([mask for _, mask in pairs])
    module = SegmentationLoss(Segmenter(encoder, classes=4, width=8, seed=0), IGNORE_INDEX)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = module((images, masks))["ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None for p in module.parameters())


def test_prediction_has_the_mask_size_when_images_are_scaled(
    encoder: Encoder, scenes: Write
) -> None:
    item = read(scenes()).test[0]
    segmenter = Segmenter(encoder, classes=4, width=4, seed=0)
    assert example(item, 40)[1].shape == (40, 40)
    for image_size in (None, 40):
        predicted = predict(segmenter, item.pixels(), image_size, torch.device("cpu"))
        assert predicted.shape == item.classes().shape
        assert predicted.max() < 4


def test_majority_is_the_constant_prediction() -> None:
    masks = [torch.tensor([[0, 2, 2], [2, IGNORE_INDEX, IGNORE_INDEX]]), torch.tensor([[2, 2, 0]])]
    share = majority(masks, classes=4, ignore_index=IGNORE_INDEX)
    truth = torch.cat([mask.flatten() for mask in masks])
    constant = torch.full_like(truth, 2)
    assert share.label == 2
    assert share.miou_percent == pytest.approx(mean_iou_by_sets(truth, constant, 4))
    assert share.pixel_percent == pytest.approx(100 * 5 / 7)

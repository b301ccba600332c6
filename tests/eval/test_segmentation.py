"""Segmentation: the confusion matrix against loops, the pyramid head's shapes, the reader."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.deployment import Encoder
from compress.errors import UserError
from eval.segmentation.data import VOID, SegmentationData, voc_segmentation
from eval.segmentation.metrics import confusion_matrix, iou_per_class, segmentation_metrics
from eval.segmentation.model import PyramidPoolingHead, SegmentationLoss, Segmenter
from eval.segmentation.task import example, predict

Write = Callable[..., Path]


def mean_iou_by_sets(truth: Tensor, prediction: Tensor, classes: int) -> float:
    """Float64 oracle: sets of pixel positions per class, void positions taken out first."""
    pairs = zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True)
    pixels = [(i, t, p) for i, (t, p) in enumerate(pairs) if t != VOID]
    ratios = []
    for label in range(classes):
        true = {i for i, t, _ in pixels if t == label}
        said = {i for i, _, p in pixels if p == label}
        if true | said:
            ratios.append(len(true & said) / len(true | said))
    return 100 * sum(ratios) / len(ratios)


def read(root: Path, classes: tuple[str, ...] = ("background", "0", "1", "2")) -> SegmentationData:
    return voc_segmentation(root, root=str(root), classes=classes)


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_counting_sets(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (3, 9, 7), generator=draw)
    truth[torch.rand(truth.shape, generator=draw) < 0.2] = VOID
    prediction = torch.randint(0, 5, (3, 9, 7), generator=draw)  # class 5 of 6 never occurs
    whole = confusion_matrix(truth, prediction, classes=6, void=VOID)
    parts = sum(
        confusion_matrix(t, p, classes=6, void=VOID) for t, p in zip(truth, prediction, strict=True)
    )
    assert torch.equal(whole, parts)
    metrics = segmentation_metrics(whole)
    assert metrics["miou_percent"] == pytest.approx(mean_iou_by_sets(truth, prediction, 6))
    assert metrics["absent_classes"] == 1
    valid = truth != VOID
    accuracy = (truth == prediction)[valid].double().mean().item()
    assert metrics["pixel_accuracy_percent"] == pytest.approx(100 * accuracy)


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    truth, prediction = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1])
    confusion = confusion_matrix(truth, prediction, classes=3, void=VOID)
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
    masks[:, :16] = VOID
    logits = segmenter(images).detach().double()
    chosen = [
        -torch.log_softmax(logits[n, :, y, x], 0)[masks[n, y, x]]
        for n in range(2)
        for y in range(16, 32)
        for x in range(32)
    ]
    loss = SegmentationLoss(segmenter, VOID)((images, masks))["ce"]
    assert loss.item() == pytest.approx(torch.stack(chosen).mean().item(), rel=1e-5)


def test_loss_falls_and_reaches_every_parameter(encoder: Encoder, scenes: Write) -> None:
    data = read(scenes())
    pairs = [example(item, None, mirrored=False) for item in data.train]
    images = encoder.preprocessing.normalise(torch.stack([pixels for pixels, _ in pairs]))
    masks = torch.stack([mask for _, mask in pairs])
    module = SegmentationLoss(Segmenter(encoder, classes=4, width=8, seed=0), VOID)
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
    assert example(item, 40, mirrored=False)[1].shape == (40, 40)
    for image_size in (None, 40):
        predicted = predict(segmenter, item.pixels(), image_size, torch.device("cpu"))
        assert predicted.shape == item.classes().shape
        assert predicted.max() < 4


def test_mirroring_moves_image_and_mask_together(scenes: Write) -> None:
    item = read(scenes()).train[0]
    pixels, mask = example(item, None, mirrored=False)
    mirrored_pixels, mirrored_mask = example(item, None, mirrored=True)
    assert torch.equal(mirrored_pixels.flip(2), pixels)
    assert torch.equal(mirrored_mask.flip(1), mask)


def test_void_is_read_as_void_and_not_as_a_class(scenes: Write) -> None:
    root = scenes()
    path = root / "SegmentationClass" / "train_00000.png"
    values = np.asarray(Image.open(path)).copy()
    values[:5] = 255
    Image.fromarray(values).save(path)
    assert (read(root).train[0].classes()[:5] == VOID).all()


def damage_size(root: Path) -> str:
    path = root / "SegmentationClass" / "train_00001.png"
    Image.open(path).crop((0, 0, 60, 64)).save(path)
    return r"train_00001\.png has 60 x 64 pixels, its image train_00001\.png has 64 x 64"


def damage_values(root: Path) -> str:
    path = root / "SegmentationClass" / "train_00001.png"
    Image.fromarray(np.full((64, 64), 7, dtype=np.uint8)).save(path)
    return r"train_00001\.png has class 7; there are classes 0 to 3"


def damage_mode(root: Path) -> str:
    path = root / "SegmentationClass" / "val_00000.png"
    Image.open(path).convert("RGB").save(path)
    return r"val_00000\.png is no mask"


def damage_bytes(root: Path) -> str:
    (root / "SegmentationClass" / "val_00000.png").write_bytes(b"")
    return r"val_00000\.png cannot be read"


def damage_end(root: Path) -> str:
    path = root / "SegmentationClass" / "val_00000.png"
    path.write_bytes(path.read_bytes()[:150] if path.stat().st_size > 150 else b"")
    return r"val_00000\.png cannot be read"


def remove_mask(root: Path) -> str:
    (root / "SegmentationClass" / "val_00000.png").unlink()
    return r"val_00000\.png not found"


def remove_image(root: Path) -> str:
    (root / "JPEGImages" / "val_00000.png").unlink()
    return r"val_00000.* not found"


def empty_list(root: Path) -> str:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    return r"train\.txt lists no image"


@pytest.mark.parametrize(
    "damage",
    [
        damage_size,
        damage_values,
        damage_mode,
        damage_bytes,
        damage_end,
        remove_mask,
        remove_image,
        empty_list,
    ],
)
def test_damaged_mask_names_its_file(scenes: Write, damage: Callable[[Path], str]) -> None:
    root = scenes()
    with pytest.raises(UserError, match=damage(root)):
        read(root)

"""The detection task: fine-tune a Faster R-CNN from each init, report COCO average precision."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from compress.ranks import by_first, joined, part
from eval.batches import KeyedBatches
from eval.context import Context, Start, compare_inits, fine_tune, opened, result
from eval.detection.annotations import AnnotatedImage, DetectionData
from eval.detection.data import DATASETS
from eval.detection.metrics import PROTOCOL, average_precision
from eval.detection.model import DetectorLoss, Images, Targets, build_detector
from eval.pictures import draw_detections

__all__ = ["DATASETS", "detection"]

_PICTURED = 4
Example = tuple[Tensor, dict[str, Tensor]]


def detection(
    context: Context,
    *,
    image_size: int | None = None,
    stride: int = 4,
    anchor_sizes: tuple[int, ...] = (16, 24),
    anchor_ratios: tuple[float, ...] = (1.0, 2.0),
    rois_per_image: int = 16,
    proposals: int = 50,
    head_width: int = 128,
    flip: bool = False,
) -> dict[str, Any]:
    """Fine-tune and evaluate every init.

    Args:
        image_size: shorter side in pixels to which images are scaled; None keeps their size.
        stride: smallest stride of the map; an encoder's finer map is average-pooled to it.
        anchor_sizes, anchor_ratios: side in pixels and height / width of the anchors.
        rois_per_image: regions per image that train the box head.
        proposals: regions that survive non-maximum suppression.
        head_width: units of the two fully connected layers.
        flip: mirror training images at random; wrong where left and right differ in meaning.
    """
    spec = dict(context.data)
    make = DATASETS[spec.pop("name")]
    data = opened(context, lambda folder: make(folder, **spec))

    def evaluate(start: Start) -> dict[str, float]:
        detector = build_detector(
            start.encoder,
            classes=len(data.class_names),
            stride=stride,
            image_size=image_size,
            anchor_sizes=tuple(anchor_sizes),
            anchor_ratios=tuple(anchor_ratios),
            rois_per_image=rois_per_image,
            proposals=proposals,
            head_width=head_width,
            seed=context.seed,
        )
        return _fine_tune(context, start, detector, data, flip)

    rows = compare_inits(context, evaluate)
    return result(
        context,
        rows,
        protocol=PROTOCOL,
        headline="ap50_percent",
        train_images=len(data.train),
        test_images=len(data.test),
        pictures=[f"pictures/{init}.png" for init in context.inits],
        legend="Blue: true boxes. Orange: detections with a score of at least 0.5.",
    )


def _fine_tune(
    context: Context, start: Start, detector: FasterRCNN, data: DetectionData, flip: bool
) -> dict[str, float]:
    batches = KeyedBatches(
        count=len(data.train),
        batch_size=context.settings.batch_size,
        seed=context.seed,
        flip=flip,
        read=lambda index, mirrored: example(data, index, mirrored),
        collate=lambda examples: _to_device(examples, context.device),
    )
    fine_tune(context, start, DetectorLoss(detector), batches, "detection")
    found = detect(detector, data.test, context.settings.batch_size, context.device)
    picture = context.folder / "pictures" / f"{start.init}.png"
    return by_first(lambda: _judged(data, found, picture))


def _judged(data: DetectionData, found: list[dict[str, Tensor]], picture: Path) -> dict[str, float]:
    """Metrics over the test images, the first of which are drawn."""
    picture.parent.mkdir(exist_ok=True)
    draw_detections(picture, data.test[:_PICTURED], found[:_PICTURED], data.class_names)
    return average_precision(data.test, found, len(data.class_names))


def example(data: DetectionData, index: int, mirrored: bool) -> Example:
    """Pixels (3, H, W) uint8 and the boxes and labels to train on, mirrored or not."""
    image = data.train[index]
    pixels = image.pixels()
    kept = torch.ones_like(image.ignored) if data.trains_on_ignored else ~image.ignored
    boxes, labels = image.boxes[kept], image.labels[kept]
    if mirrored:
        pixels = pixels.flip(2)
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([image.width - x1, y0, image.width - x0, y1], dim=1)
    return pixels, {"boxes": boxes, "labels": labels}


def _to_device(examples: list[Example], device: torch.device) -> tuple[Images, Targets]:
    images = [pixels.to(device).float() / 255 for pixels, _ in examples]
    return images, [{k: v.to(device) for k, v in target.items()} for _, target in examples]


@torch.no_grad()
def detect(
    detector: FasterRCNN, images: tuple[AnnotatedImage, ...], batch_size: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Boxes (n, 4), labels (n,) and scores (n,) of every image, on the CPU, best score first.

    Each of several processes sees whole batches of the images, and all get all detections.
    """
    detector.eval()
    found: list[dict[str, Tensor]] = []
    firsts = range(0, len(images), batch_size)
    for first in firsts[part(len(firsts))]:
        chunk = [
            image.pixels().to(device).float() / 255 for image in images[first : first + batch_size]
        ]
        found += [{k: v.cpu() for k, v in output.items()} for output in detector(chunk)]
    return joined(found)

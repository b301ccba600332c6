"""From annotated images to the batches that a detector learns from."""

import torch
from torch import Tensor

from eval.data.annotations import DetectionData
from eval.detection.model import Images, Targets

Example = tuple[Tensor, dict[str, Tensor]]


def example(data: DetectionData, index: int, mirrored: bool, *, masks: bool = False) -> Example:
    """Pixels (3, H, W) uint8 and the boxes, labels and masks to train on, mirrored or not."""
    image = data.train[index]
    pixels = image.pixels()
    kept = torch.ones_like(image.ignored) if data.trains_on_ignored else ~image.ignored
    boxes, labels = image.boxes[kept], image.labels[kept]
    if mirrored:
        pixels = pixels.flip(2)
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([image.width - x1, y0, image.width - x0, y1], dim=1)
    target = {"boxes": boxes, "labels": labels}
    if masks:
        drawn = image.masks()[kept]
        target["masks"] = drawn.flip(2) if mirrored else drawn
    return pixels, target


def to_device(examples: list[Example], device: torch.device) -> tuple[Images, Targets]:
    """Images in 0..1 and their targets, on the device."""
    images = [pixels.to(device).float() / 255 for pixels, _ in examples]
    return images, [{k: v.to(device) for k, v in target.items()} for _, target in examples]

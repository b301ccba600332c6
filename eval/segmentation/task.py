"""The segmentation task: fine-tune encoder and head from each init, report mean IoU."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import UserError
from compress.ranks import is_first, part, summed
from eval.batches import KeyedBatches
from eval.context import Context, Start, compare_inits, fine_tune, opened, result
from eval.pictures import draw_masks
from eval.segmentation.data import DATASETS, VOID, MaskedImage, SegmentationData
from eval.segmentation.metrics import PROTOCOL, confusion_matrix, segmentation_metrics
from eval.segmentation.model import SegmentationLoss, Segmenter

__all__ = ["DATASETS", "segmentation"]

_PICTURED = 4
Example = tuple[Tensor, Tensor]


def segmentation(
    context: Context, *, image_size: int | None = None, width: int = 64, flip: bool = False
) -> dict[str, Any]:
    """Fine-tune and evaluate every init.

    Args:
        image_size: side in pixels of the square to which images are scaled; predictions are scaled
            back to the mask. None keeps the images, which then all have one size.
        width: channels of each branch of the pyramid pooling head.
        flip: mirror training images at random; wrong where left and right differ in meaning.
    """
    spec = dict(context.data)
    make = DATASETS[spec.pop("name")]
    data = opened(context, lambda folder: make(folder, **spec))
    if min(context.settings.batch_size, len(data.train)) < 2:
        raise UserError(
            "segmentation needs batches of two or more images: the norm of the one-cell branch "
            "has a single value per image."
        )

    def evaluate(start: Start) -> dict[str, float]:
        segmenter = Segmenter(
            start.encoder, classes=len(data.class_names), width=width, seed=context.seed
        )
        return _fine_tune(context, start, segmenter, data, image_size, flip)

    rows = compare_inits(context, evaluate)
    return result(
        context,
        rows,
        protocol=PROTOCOL,
        headline="miou_percent",
        train_images=len(data.train),
        test_images=len(data.test),
        pictures=[f"pictures/{init}.png" for init in context.inits],
        legend="Of each picture, the upper row shows the true masks, the lower row the predicted.",
    )


def _fine_tune(
    context: Context,
    start: Start,
    segmenter: Segmenter,
    data: SegmentationData,
    image_size: int | None,
    flip: bool,
) -> dict[str, float]:
    def collate(examples: list[Example]) -> tuple[Tensor, Tensor]:
        shapes = {tuple(mask.shape) for _, mask in examples}
        if len(shapes) > 1:
            raise UserError(f"segmentation: images of {len(shapes)} sizes; set image_size.")
        pixels = torch.stack([pixels for pixels, _ in examples]).to(context.device)
        masks = torch.stack([mask for _, mask in examples]).to(context.device)
        return segmenter.encoder.preprocessing.normalise(pixels), masks

    batches = KeyedBatches(
        count=len(data.train),
        batch_size=context.settings.batch_size,
        seed=context.seed,
        flip=flip,
        read=lambda index, mirrored: example(data.train[index], image_size, mirrored),
        collate=collate,
    )
    fine_tune(context, start, SegmentationLoss(segmenter, VOID), batches, "segmentation")
    picture = context.folder / "pictures" / f"{start.init}.png"
    return _evaluate(segmenter, data, image_size, context.device, picture)


def _evaluate(
    segmenter: Segmenter,
    data: SegmentationData,
    image_size: int | None,
    device: torch.device,
    picture: Path,
) -> dict[str, float]:
    """Metrics over the test images, of which each process sees its part; the first are drawn."""
    classes = len(data.class_names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for item in data.test[part(len(data.test))]:
        prediction = predict(segmenter, item.pixels(), image_size, device)
        confusion += confusion_matrix(item.classes(), prediction, classes=classes, void=VOID)
    if is_first():
        picture.parent.mkdir(exist_ok=True)
        images = [item.pixels() for item in data.test[:_PICTURED]]
        truths = [item.classes() for item in data.test[:_PICTURED]]
        predictions = [predict(segmenter, pixels, image_size, device) for pixels in images]
        draw_masks(picture, images, truths, predictions, VOID)
    return segmentation_metrics(summed(confusion))


def example(item: MaskedImage, image_size: int | None, mirrored: bool) -> Example:
    """Pixels (3, H, W) uint8 and mask (H, W) int64, scaled to the square, mirrored or not."""
    pixels, mask = item.pixels(), item.classes()
    if image_size is not None:
        pixels = _scaled(pixels, (image_size, image_size))
        square = mask[None, None].float()
        mask = functional.interpolate(square, size=(image_size, image_size), mode="nearest")[
            0, 0
        ].long()
    return (pixels.flip(2), mask.flip(1)) if mirrored else (pixels, mask)


def _scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8."""
    scaled = functional.interpolate(
        pixels[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def predict(
    segmenter: Segmenter, pixels: Tensor, image_size: int | None, device: torch.device
) -> Tensor:
    """(3, H, W) uint8 -> predicted classes (H, W) int64 on the CPU, at the image's own size."""
    segmenter.eval()
    size = (pixels.shape[1], pixels.shape[2])
    if image_size is not None:
        pixels = _scaled(pixels, (image_size, image_size))
    logits = segmenter(segmenter.encoder.preprocessing.normalise(pixels[None].to(device)))
    logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return logits[0].argmax(0).cpu()

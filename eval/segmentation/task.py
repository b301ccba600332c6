"""The segmentation task: fine-tune encoder and heads from each init, report mean IoU."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.dense.masked_images import IGNORE_INDEX, SegmentationData
from compress.data.dense.overlays import draw_overlays
from compress.data.dense.views import resize
from compress.distributed.collectives import all_gather_items, is_main_process, own_rows
from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.models.segmentation.pyramid import AUXILIARY_WEIGHT
from compress.tasks.confusion import PROTOCOL, confusion_matrix, majority, segmentation_metrics
from eval.data.segmentation import DATASETS
from eval.segmentation.backbone import auxiliary_map
from eval.segmentation.deep_stem import with_deep_stem
from eval.segmentation.model import SegmentationLoss, Segmenter
from eval.segmentation.saved import (
    CONFUSION,
    is_kept,
    mask_png,
    read_metrics,
    write_confusion,
    write_masks,
)
from eval.segmentation.views import Views, at_least, view_batches
from eval.transfer.context import (
    SCRATCH,
    Start,
    TransferContext,
    compare_inits,
    fine_tune,
    open_entry,
    result,
)
from eval.transfer.paired import bootstrap

__all__ = ["DATASETS", "segmentation"]

_PICTURE = "masks.png"
_PICTURED = 4


def segmentation(
    context: TransferContext,
    *,
    image_size: int | None = None,
    crop: int | None = None,
    scales: tuple[float, float] | None = None,
    flip: bool = False,
    width: int | None = None,
    auxiliary_weight: float = AUXILIARY_WEIGHT,
    deep_stem: bool = False,
    freeze_encoder: bool = False,
) -> dict[str, Any]:
    """Fine-tune and evaluate every init.

    Args:
        image_size: side in pixels of the square to which images are scaled; predictions are scaled
            back to the mask. None keeps the images.
        crop: side of the squares that training images are cut to; tests see whole images.
        scales: training images are scaled before by a factor between these (papers: 0.7 and 2.1).
        flip: mirror training images at random; wrong where left and right differ in meaning.
        width: channels of each pyramid branch; None: a quarter of the encoder's, 64 or more.
        auxiliary_weight: of the loss on the map before the last stage; 0: no such head.
        deep_stem: give an ImageNet-style ResNet the papers' stem of three 3x3 convolutions. Its
            weights are new, so fewer than 100 % match, which must be allowed.
        freeze_encoder: only the head learns; batch-norm statistics stay too.
    """
    views = Views(image_size, crop, scales and (scales[0], scales[1]), flip)
    at_least("width", width, 1)
    at_least("auxiliary_weight", auxiliary_weight, 0)
    if deep_stem and freeze_encoder:
        raise UserError("segmentation: a deep stem is new and must learn; not freeze_encoder.")
    data = _open_data(context)
    weight = 0.0 if freeze_encoder else auxiliary_weight  # its only use is to teach the encoder

    def evaluate(start: Start) -> dict[str, float]:
        segmenter = Segmenter(
            _deepen_encoder(context, start) if deep_stem else start.encoder,
            classes=len(data.class_names),
            seed=start.seed,
            width=width,
            auxiliary=auxiliary_map(start.origin.taps) if weight > 0 else None,
            frozen=freeze_encoder,
        )
        return _fine_tune(context, start, segmenter, data, views, weight)

    compare = partial(bootstrap, read_metrics, seed=context.seed)
    return _result(context, compare_inits(context, evaluate, compare), data)


def _open_data(context: TransferContext) -> SegmentationData:
    data = open_entry(context, DATASETS)
    if min(context.settings.batch_size, len(data.train)) < 2:
        raise UserError(
            "segmentation needs batches of two or more images: the norm of the one-cell branch "
            "has a single value per image."
        )
    return data


def _result(
    context: TransferContext, rows: list[dict[str, Any]], data: SegmentationData
) -> dict[str, Any]:
    """The values of the stage, with what one class everywhere would score."""
    alone = majority([item.classes() for item in data.test], len(data.class_names), IGNORE_INDEX)
    name = data.class_names[alone.label]
    legend = (
        "Rows: images, true classes, predicted classes. "
        f"'{name}' everywhere would have a mean IoU of {alone.miou_percent:.1f} % and "
        f"{alone.pixel_percent:.1f} % of the pixels."
    )
    names = [f"{init}/seed-{context.seed}/{_PICTURE}" for init in context.inits]
    values = result(
        context,
        rows,
        protocol=PROTOCOL,
        headline="miou_percent",
        train_images=len(data.train),
        test_images=len(data.test),
        pictures=[name for name in names if (context.folder / name).is_file()],
        legend=legend,
    )
    return {
        **values,
        "majority": {
            "class": name,
            "miou_percent": alone.miou_percent,
            "pixel_percent": alone.pixel_percent,
        },
    }


def _deepen_encoder(context: TransferContext, start: Start) -> Encoder:
    """The start's encoder with a deep stem, where the share that matches is allowed."""
    taps = start.origin.taps
    assert taps.last_map is not None  # the encoder was cut there
    network = start.origin.network(weights=start.init != SCRATCH, seed=start.seed)
    encoder = with_deep_stem(network, start.encoder, taps.last_map, seed=start.seed)
    start.encoder.matched_percent = encoder.matched_percent  # what the row will show
    if start.init != SCRATCH and not context.allow_partial:
        raise UserError(
            f"{start.origin.reference}: with a deep stem only {encoder.matched_percent:.1f} % of "
            "the encoder's weights match, as it was trained with another stem; allow that "
            "(--allow-partial) or leave out deep_stem."
        )
    return encoder


def _fine_tune(
    context: TransferContext,
    start: Start,
    segmenter: Segmenter,
    data: SegmentationData,
    views: Views,
    auxiliary_weight: float,
) -> dict[str, float]:
    batches = view_batches(
        data.train,
        views,
        segmenter.preprocessing,
        batch_size=context.settings.batch_size,
        seed=start.seed,
        device=context.device,
    )
    loss = SegmentationLoss(segmenter, IGNORE_INDEX, auxiliary_weight)
    fine_tune(context, start, loss, batches, "segmentation")
    picture = start.folder / _PICTURE
    return _evaluate(segmenter, data, views.image_size, context.device, picture)


def _evaluate(
    segmenter: Segmenter,
    data: SegmentationData,
    image_size: int | None,
    device: torch.device,
    picture: Path,
) -> dict[str, float]:
    """Metrics over the test images, of which each process sees its part; some are drawn.

    Masks and counts are saved beside the picture, see `eval.segmentation.saved`.
    """
    classes, count = len(data.class_names), len(data.test)
    each: list[Tensor] = []
    masks: list[tuple[str, bytes]] = []
    for index in range(count)[own_rows(count)]:
        item = data.test[index]
        prediction = predict(segmenter, item.pixels(), image_size, device)
        each.append(
            confusion_matrix(item.classes(), prediction, classes=classes, ignore_index=IGNORE_INDEX)
        )
        if is_kept(index, count):
            masks.append((f"{index:05d}-{item.image.stem}.png", mask_png(prediction, classes)))
    confusion = torch.stack(all_gather_items(each))
    masks = all_gather_items(masks)
    if is_main_process():
        write_masks(picture.parent, masks)
        write_confusion(picture.parent / CONFUSION, confusion)
        examples = data.test[:: max(1, len(data.test) // _PICTURED)][:_PICTURED]
        draw_overlays(
            picture,
            [item.pixels() for item in examples],
            [item.classes() for item in examples],
            [predict(segmenter, item.pixels(), image_size, device) for item in examples],
            data.class_names,
            background=data.background,
        )
    return segmentation_metrics(confusion.sum(0))


@torch.no_grad()
def predict(
    segmenter: Segmenter, pixels: Tensor, image_size: int | None, device: torch.device
) -> Tensor:
    """(3, H, W) uint8 -> predicted classes (H, W) int64 on the CPU, at the image's own size."""
    segmenter.eval()
    size = (pixels.shape[1], pixels.shape[2])
    if image_size is not None:
        pixels = resize(pixels, (image_size, image_size))
    logits = segmenter(segmenter.preprocessing.normalise(pixels[None].to(device)))
    logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return logits[0].argmax(0).cpu()

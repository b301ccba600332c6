"""Predicted masks as files: PNG by image, and the confusion matrix of every image.

`masks/00012-NAME.png` has the image's own size; a pixel's value is its predicted class, its colour
that of the pictures. Of more than `MOST_MASKS` test images an even part is kept. `confusion.npz`
holds `confusion` (N, K, K) int32 of all images in their order, row = true class, column =
predicted, void left out: mean IoU of any part of them needs no mask.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.comparison.bootstrap import ImageMetrics
from compress.console.messages import log
from compress.data.dense.overlays import palette
from compress.storage.files import write_bytes
from compress.tasks.confusion import image_metrics, read_confusion

MASKS, CONFUSION = "masks", "confusion.npz"
MOST_MASKS = 2_000  # VOC has 1,449 validation images, Cityscapes 500 of two million pixels
MOST_CELLS = 100_000_000  # of confusion matrices, before compression


def is_kept(index: int, images: int, *, most: int = MOST_MASKS) -> bool:
    """Whether the mask of a test image is kept: all of few, of many every so-manyth."""
    return index % -(-images // most) == 0


def mask_png(prediction: Tensor, classes: int) -> bytes:
    """Predicted classes (H, W) as a PNG with a palette."""
    picture = Image.fromarray(prediction.to(torch.uint8).numpy())
    picture.putpalette(palette(classes).flatten().tolist())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_masks(folder: Path, masks: Sequence[tuple[str, bytes]]) -> None:
    """Write (name, PNG) pairs to `folder/masks`, in place of those of an earlier try."""
    shutil.rmtree(folder / MASKS, ignore_errors=True)
    (folder / MASKS).mkdir(parents=True)
    for name, content in masks:
        (folder / MASKS / name).write_bytes(content)


def write_confusion(path: Path, confusion: Tensor) -> None:
    """Write the (N, K, K) counts, unless they are very many."""
    if confusion.numel() > MOST_CELLS:
        log(f"  {path.name}: left out, {len(confusion):,} images x {confusion.shape[1]}^2 counts")
        return
    buffer = io.BytesIO()
    np.savez_compressed(buffer, confusion=confusion.numpy().astype(np.int32))
    write_bytes(path, buffer.getvalue())


def read_metrics(folder: Path) -> ImageMetrics | None:
    """The metrics of a training by image; None where it left no confusion matrices."""
    confusion = read_confusion(folder / CONFUSION)
    return None if confusion is None else image_metrics(confusion)

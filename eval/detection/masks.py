"""Outlines of objects in COCO's two forms, polygons and run lengths, and masks made of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor

# Polygons [[x0, y0, x1, y1, ...], ...], or run lengths {"size": [H, W], "counts": list or text}.
Segment = list[list[float]] | dict[str, Any]
RunLengths = dict[str, Any]


def check_segment(segment: Any, size: tuple[int, int]) -> None:
    """What can be said of an outline without drawing it.

    Args:
        size: height and width of its image.

    Raises:
        ValueError: it is no outline, or of an image of another size.
    """
    if isinstance(segment, dict):
        if tuple(segment["size"]) != size:
            height, width = segment["size"]
            raise ValueError(
                f"a mask of {width} x {height} pixels in an image of {size[1]} x {size[0]}"
            )
        counts = segment["counts"]
        if not isinstance(counts, (str, bytes)) and sum(counts) != size[0] * size[1]:
            raise ValueError(f"a mask of {sum(counts)} pixels in an image of {size[0] * size[1]}")
        return
    for polygon in segment:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers")


def encoded(segment: Segment, size: tuple[int, int]) -> RunLengths:
    """The compressed run lengths of one object.

    Raises:
        ValueError: see `check_segment`.
    """
    check_segment(segment, size)
    if isinstance(segment, dict) and isinstance(segment["counts"], (str, bytes)):
        return segment
    lengths: Any = coco_mask.frPyObjects(segment, *size)
    merged: RunLengths = lengths if isinstance(lengths, dict) else coco_mask.merge(lengths)
    return merged


def decoded(lengths: Sequence[RunLengths], size: tuple[int, int]) -> Tensor:
    """n run lengths -> (n, H, W) uint8."""
    if not lengths:
        return torch.zeros(0, *size, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(coco_mask.decode([*lengths]).transpose(2, 0, 1)))


def encode_masks(masks: Tensor) -> list[RunLengths]:
    """(n, H, W) bool -> their compressed run lengths."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    return list(coco_mask.encode(columns))

"""Outlines of objects in COCO's two forms, polygons and run lengths, and masks made of them."""

import math
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
    """Check an outline without drawing it.

    COCO's interface trusts its input: it reads past the end of damaged run lengths, and never ends
    with some coordinates. So everything is checked here before it reaches that interface.

    Args:
        size: height and width of its image.

    Raises:
        ValueError: it is no outline, or of an image of another size.
    """
    if isinstance(segment, dict):
        _check_run_lengths(segment, size)
    elif isinstance(segment, list) and segment:
        for polygon in segment:
            _check_polygon(polygon, size)
    else:
        raise ValueError("neither polygons nor run lengths")


def _check_run_lengths(segment: dict[str, Any], size: tuple[int, int]) -> None:
    if not {"size", "counts"} <= segment.keys():
        raise ValueError("run lengths without size or counts")
    shape, counts = segment["size"], segment["counts"]
    if not _are_numbers(shape, {int}) or len(shape) != 2:
        raise ValueError("run lengths whose size is not two integers")
    if tuple(shape) != size:
        raise ValueError(
            f"a mask of {shape[1]} x {shape[0]} pixels in an image of {size[1]} x {size[0]}"
        )
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts)
    if not _are_numbers(counts, {int}) or min(counts, default=0) < 0:
        raise ValueError("run lengths that are not integers of at least 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"a mask of {sum(counts)} pixels in an image of {size[0] * size[1]}")


def _decompress(text: str | bytes) -> list[int]:
    """The run lengths of COCO's text: six bits a character, from the third the second difference.

    The lowest five bits of a character belong to the number, lowest first, the sixth says that it
    goes on. A number's highest bit is its sign.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii") if isinstance(text, str) else text:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("run lengths with a character that is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length that is too long")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that end within a number")
    return counts


def _check_polygon(polygon: Any, size: tuple[int, int]) -> None:
    if not _are_numbers(polygon, {int, float}) or not all(map(math.isfinite, polygon)):
        raise ValueError("a polygon that is not a list of finite numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers")
    for places, length in ((polygon[::2], size[1]), (polygon[1::2], size[0])):
        lowest, highest = min(places), max(places)
        # It may stick out, but drawing visits each pixel that it passes, inside or not.
        if highest < 0 or lowest > length or lowest < -length or highest > 2 * length:
            raise ValueError(f"a polygon outside its image of {size[1]} x {size[0]} pixels")


def _are_numbers(values: Any, kinds: set[type]) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= kinds


def encode_segment(segment: Segment, size: tuple[int, int]) -> RunLengths:
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


def decode_masks(lengths: Sequence[RunLengths], size: tuple[int, int]) -> Tensor:
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

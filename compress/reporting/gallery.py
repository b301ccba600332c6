"""The gallery: test images with what teacher, student and int8 file say of them."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from torch import Tensor

from compress.data import Images
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Gallery, Heading, Paragraph, Sample
from compress.reporting.judged import Judged

_MOST = 8  # images of a group
_SIDE = 112  # pixels of a thumbnail


def gallery(run: RunData, judged: list[Judged], images: Images | None) -> list[Block]:
    """Groups of images by who is right; nothing where the images are not at hand.

    Args:
        images: those that the predictions are of; others are not shown.
    """
    if images is None or len(judged) < 2:
        return []
    teacher, student = judged[:2]
    confidences = [sure for one in judged if (sure := one.confidence) is not None]
    if images.digest() != student.predictions.images or len(confidences) < len(judged):
        return []
    names = run.class_names
    groups = [
        (f"{teacher.title} is right, {student.title} is wrong", _both(teacher, student)),
        (f"{student.title} is right, {teacher.title} is wrong", _both(student, teacher)),
        ("Both are wrong", ~teacher.predictions.correct & ~student.predictions.correct),
        ("Both are right", teacher.predictions.correct & student.predictions.correct),
    ]
    if len(judged) > 2:
        differ = judged[2].predictions.top1 != student.predictions.top1
        groups.insert(2, (f"{student.title} and its int8 file disagree", differ))
    blocks: list[Block] = [Heading("Predictions"), Paragraph(_about(judged), is_note=True)]
    for title, mask in groups:
        chosen = _surest(mask, confidences[1])
        if len(chosen):
            pixels = images.fetch_square(torch.from_numpy(chosen), _SIDE)[:, :3]
            samples = [
                _sample(int(index), tensor, judged, confidences, names)
                for index, tensor in zip(chosen, pixels, strict=True)
            ]
            blocks.append(Gallery(f"{title}: {int(mask.sum()):,} of {len(mask):,}", samples))
    return blocks if len(blocks) > 2 else []


def _about(judged: list[Judged]) -> str:
    return (
        f"Of each group the images of which {judged[1].title} is surest. Under each its true "
        f"class, then line by line what is said by {', '.join(one.title for one in judged)}, and "
        "how sure of it each is."
    )


def _both(right: Judged, wrong: Judged) -> NDArray[np.bool_]:
    is_both: NDArray[np.bool_] = right.predictions.correct & ~wrong.predictions.correct
    return is_both


def _surest(mask: NDArray[np.bool_], confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """The images of a group with the highest confidence, the surest first."""
    places = np.flatnonzero(mask)
    order = np.argsort(-confidence[places], kind="stable")
    return places[order][:_MOST].astype(np.int64)


def _sample(
    index: int,
    pixels: Tensor,
    judged: Sequence[Judged],
    confidences: Sequence[NDArray[np.float64]],
    names: Sequence[str],
) -> Sample:
    def name(label: Any) -> str:
        return names[int(label)] if int(label) < len(names) else str(int(label))

    true = judged[0].predictions.labels[index]
    said = [
        (
            name(one.predictions.top1[index]),
            f"{100 * confidence[index]:.0f} %",
            bool(one.predictions.correct[index]),
        )
        for one, confidence in zip(judged, confidences, strict=True)
    ]
    pairs = zip(judged, said, strict=True)
    words = ", ".join(f"{one.title} says {text}" for one, (text, _, _) in pairs)
    return Sample(_jpeg(pixels), f"An image of {name(true)}; {words}", name(true), said)


def _jpeg(pixels: Tensor) -> bytes:
    """A thumbnail; small images are enlarged without smoothing, so that pixels can be seen."""
    picture = Picture.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    is_small = picture.width < _SIDE
    how = Picture.Resampling.NEAREST if is_small else Picture.Resampling.LANCZOS
    side = _SIDE if not is_small else picture.width * max(1, _SIDE // picture.width)
    content = io.BytesIO()
    picture.resize((side, side), how).save(content, "JPEG", quality=88)
    return content.getvalue()

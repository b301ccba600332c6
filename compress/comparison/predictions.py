"""Predictions of a network on the test images, in a file that numpy reads: `predictions.npz`.

labels          (N,) int32, the true classes, in the order of the test split
top1            (N,) int32, the predicted classes, from the logits as they were computed
probabilities   (N, K) float16, softmax of the logits; column k is class k. Only where N K is at
                most `MOST_PROBABILITIES`; else the most probable classes of each image:
top_classes, top_probabilities      (N, 10) int32 and float16, the most probable first
images          what the images were: a digest, equal for equal images in equal order

float16 has 11 bits: a probability is off by less than 0.05 % of itself, and those below 3e-8 become
0, which calibration, curves over thresholds and averages of networks do not feel; it is half the
size of float32. It cannot tell near ties, for which `top1` stands by itself, nor give the log
likelihood of what was held impossible.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserError
from compress.storage.files import write_bytes

PREDICTIONS = "predictions.npz"
MOST_PROBABILITIES = 10_000_000  # 20 MB before compression
_TOP = 10
_BLOCK = 1000  # images sorted at once


@dataclass(frozen=True)
class Predictions:
    """True and predicted classes (N,) of the test images, and a digest of these images."""

    labels: NDArray[np.int32]
    top1: NDArray[np.int32]
    images: str

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,), True where the predicted class is the true one."""
        is_correct: NDArray[np.bool_] = self.labels == self.top1
        return is_correct

    def of_same_images(self, other: "Predictions") -> bool:
        """Whether both are of the same images in the same order, so that they can be paired."""
        return self.images == other.images and np.array_equal(self.labels, other.labels)


def prediction_arrays(
    labels: NDArray[Any],
    top1: NDArray[Any],
    probabilities: NDArray[Any],
    *,
    most: int = MOST_PROBABILITIES,
) -> dict[str, NDArray[Any]]:
    """The arrays of a predictions file, without `images`.

    Args:
        labels, top1: (N,).
        probabilities: (N, K), of any floating type.
        most: numbers that `probabilities` may hold; of more the most probable classes are kept.
    """
    arrays = {"labels": labels.astype(np.int32), "top1": top1.astype(np.int32)}
    if probabilities.size <= most:
        return {**arrays, "probabilities": probabilities.astype(np.float16)}
    blocks = np.array_split(probabilities, max(1, len(probabilities) // _BLOCK))
    order = np.concatenate([np.argsort(-b, axis=1, kind="stable")[:, :_TOP] for b in blocks])
    return {
        **arrays,
        "top_classes": order.astype(np.int32),
        "top_probabilities": np.take_along_axis(probabilities, order, 1).astype(np.float16),
    }


def write_predictions(path: Path, arrays: Mapping[str, NDArray[Any]], images: str) -> None:
    """Write the file in one step; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    # numpy gives every member the same date.
    content: dict[str, Any] = {**arrays, "images": np.array(images)}
    np.savez_compressed(buffer, **content)
    write_bytes(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read labels, predicted classes and the digest of the images; probabilities are left.

    Raises:
        UserError: the file is not there, damaged, or no predictions.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            labels, top1, images = file["labels"], file["top1"], str(file["images"])
    except FileNotFoundError:
        raise UserError(f"{path} not found (looked in {Path.cwd()})") from None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} holds no predictions, or is damaged: {error}") from None
    if labels.ndim != 1 or labels.shape != top1.shape or not len(labels):
        raise UserError(f"{path} is damaged: {labels.shape} labels, {top1.shape} predictions")
    return Predictions(labels, top1, images)


def read_confidences(path: Path) -> NDArray[np.float64] | None:
    """(N,), the probability of each image's predicted class, of a file of predictions.

    Where only the most probable classes were kept, that of the first of them; None where the file
    has no probabilities.
    """
    with np.load(path, allow_pickle=False) as file:
        if "probabilities" in file:
            rows = np.arange(len(file["top1"]))
            confidence = file["probabilities"][rows, file["top1"]]
        elif "top_probabilities" in file:
            confidence = file["top_probabilities"][:, 0]
        else:
            return None
    in_float64: NDArray[np.float64] = confidence.astype(np.float64)
    return in_float64

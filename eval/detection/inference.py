"""Running a trained detector on images."""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from compress.distributed.collectives import all_gather_items, own_rows
from eval.data.annotations import AnnotatedImage
from eval.data.masks import encode_masks


@torch.no_grad()
def detect(
    detector: FasterRCNN, images: tuple[AnnotatedImage, ...], batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """Boxes (n, 4), labels (n,) and scores (n,) of every image, on the CPU, best score first.

    A mask detector's have also `segments`, the run lengths of each mask. Each of several processes
    sees whole batches of the images, and all get all detections.
    """
    detector.eval()
    detections: list[dict[str, Any]] = []
    firsts = range(0, len(images), batch_size)
    for first in firsts[own_rows(len(firsts))]:
        chunk = [
            image.pixels().to(device).float() / 255 for image in images[first : first + batch_size]
        ]
        detections += [_pack(output) for output in detector(chunk)]
    return all_gather_items(detections)


def _pack(output: dict[str, Tensor]) -> dict[str, Any]:
    """Masks, (n, 1, H, W) of how sure a pixel is, take megabytes an image; run lengths do not."""
    packed: dict[str, Any] = {k: v.cpu() for k, v in output.items() if k != "masks"}
    if "masks" in output:
        packed["segments"] = encode_masks(output["masks"][:, 0] >= 0.5)
    return packed

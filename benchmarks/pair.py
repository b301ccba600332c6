"""What every candidate of step.py reads: the pair, the images, and a teacher that has settled.

It needs no more than torch, numpy and `compress.models`, so that a candidate in another
environment can read it too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress.models import build

STUDENT, TEACHER = "resnet8x4", "resnet32x4"
CLASSES = 100
BATCH = 64
TEMPERATURE = 4.0
NEGATIVES = 16384
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# Weights of hard labels, soft targets and the method's own term: those of the CRD paper's tables.
WEIGHTS = {"kd": (0.1, 0.9, 0.0), "crd": (1.0, 0.0, 0.8), "simkd": (0.0, 0.0, 1.0)}
OPTIMIZER: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Data:
    """Training images: pixels uint8 (N, 32, 32, 3), labels int64 (N,)."""

    pixels: "np.ndarray[Any, np.dtype[np.uint8]]"
    labels: "np.ndarray[Any, np.dtype[np.int64]]"


def write(folder: Path, data: Data) -> None:
    """Keep images and a teacher for the candidates.

    The teacher's weights are random. Its batch norms have seen images, so that the sizes of its
    maps and logits are usual ones: what was never normalised grows from block to block.
    """
    np.save(folder / "pixels.npy", data.pixels)
    np.save(folder / "labels.npy", data.labels)
    teacher = build(TEACHER, num_classes=CLASSES, seed=0, role="teacher").train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a mean over the batches
    pixels = torch.from_numpy(data.pixels[:: max(1, len(data.pixels) // 256)][:256].copy())
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        for some in torch.split(images, BATCH):
            teacher(some)
    save_file(teacher.state_dict(), folder / "teacher.safetensors")


def read(folder: Path) -> Data:
    """The images that `write` kept."""
    return Data(np.load(folder / "pixels.npy"), np.load(folder / "labels.npy"))


def networks(folder: Path, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A new student in train mode and the teacher that `write` kept, in eval mode and frozen."""
    student = build(STUDENT, num_classes=CLASSES, seed=seed)
    teacher = build(TEACHER, num_classes=CLASSES, seed=0, role="teacher")
    teacher.load_state_dict(load_file(folder / "teacher.safetensors"))
    return student.train(), teacher.eval().requires_grad_(False)


def settled(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def random_data(images: int) -> Data:
    """Random pixels, every class equally often."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    return Data(pixels, np.arange(images, dtype=np.int64) % CLASSES)


def cifar100(root: Path) -> Data:
    """The training images of CIFAR-100 in its official layout."""
    from compress.data.cifar import cifar100 as opened  # not needed by a candidate
    from compress.data.images import MemoryImages

    train = opened(root=str(root)).train
    assert isinstance(train, MemoryImages)
    pixels = train.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return Data(pixels, train.labels.numpy().astype(np.int64))

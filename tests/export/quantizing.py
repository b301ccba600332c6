"""Images, networks and their float files, for the tests of quantization."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.models import build
from export import export_onnx

Array = NDArray[Any]


def batches(seed: int = 0, count: int = 3) -> list[Array]:
    """Normalised images with some structure: smooth colours and noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(count, 8, 3, 4, 4)).repeat(4, 3).repeat(4, 4)
    noise = generator.normal(size=(count, 8, 3, 16, 16))
    return list((coarse + 0.3 * noise).astype(np.float32))


def settled(name: str) -> nn.Module:
    """A network whose batch norm has seen the images, as after training."""
    network = build(name, num_classes=10).train()
    with torch.no_grad():
        for _ in range(4):
            for batch in batches():
                network(torch.from_numpy(batch))
    return network.eval()


def write(network: nn.Module, path: Path, **options: Any) -> Path:
    export_onnx(
        network,
        path,
        input_shape=(3, 16, 16),
        class_names=[str(i) for i in range(10)],
        preprocessing={"image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "resize": 0},
        fingerprint="0123abcd",
        **options,
    )
    return path

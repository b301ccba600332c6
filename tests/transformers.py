"""Small transformers and ConvNeXt, of torchvision and timm, for images of 32 pixels."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from compress.models import build

CLASSES = 5
SHAPE = (3, 32, 32)
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_heads": 2}
_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8}

# Name -> timm's name and arguments.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("timm:vit_tiny_patch16_224", _VIT),
    "vit_registers": ("timm:vit_tiny_patch16_224", {**_VIT, "reg_tokens": 4}),
    "vit_mean": ("timm:vit_tiny_patch16_224", {**_VIT, "global_pool": "avg"}),
    "deit": ("timm:deit_tiny_distilled_patch16_224", _VIT),
    "swin": (
        "timm:swin_tiny_patch4_window7_224",
        {**_SWIN, "depths": (1, 2, 1), "num_heads": (1, 2, 4)},
    ),
    "convnext": ("timm:convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}),
}


class OwnViT(nn.Module):
    """As a user writes one, of torch's layers; with two heads as DeiT, whose mean is its output."""

    def __init__(self, width: int = 16, depth: int = 2, *, heads: int = 1, size: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.first = nn.Parameter(torch.randn(1, heads, width))
        self.positions = nn.Parameter(torch.randn(1, heads + (size // 8) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)
        self.others = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(1, heads))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(images.shape[0], -1, -1), tokens], 1)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        heads = [self.head, *self.others]
        return sum(head(tokens[:, i]) for i, head in enumerate(heads)) / len(heads)  # type: ignore[return-value]


def _torchvision_vit() -> nn.Module:
    network = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight)  # zeros, so that all logits were equal
    return network


def _torchvision_swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, [1, 2], [1, 2], [4, 4], num_classes=CLASSES)


def _torchvision_convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, layer_scale=1.0, num_classes=CLASSES)


OTHERS: Mapping[str, Callable[[], nn.Module]] = {
    "torchvision_vit": _torchvision_vit,
    "torchvision_swin": _torchvision_swin,
    "torchvision_convnext": _torchvision_convnext,
    "own_vit": OwnViT,
    "own_deit": partial(OwnViT, heads=2),
}
NAMES = (*TIMM, *OTHERS)


def network(name: str, seed: int = 0) -> nn.Module:
    """One of `NAMES`; the test is skipped where that needs timm, which is not here."""
    if name in TIMM:
        pytest.importorskip("timm")
        model, arguments = TIMM[name]
        return build(model, num_classes=CLASSES, seed=seed, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OTHERS[name]()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3))

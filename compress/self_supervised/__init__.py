"""Encoders that learn from images alone, by name.

>>> import torch
>>> from compress.models import build
>>> encoder = build("resnet8", num_classes=0, seed=0)
>>> moco = SELF_SUPERVISED["moco"](encoder, 64, seed=0, queue_size=16)
>>> moco.augment
('moco', 'moco')
"""

from collections.abc import Mapping

from compress.self_supervised.moco import MoCo

__all__ = ["SELF_SUPERVISED", "MoCo"]

# The keyword-only arguments of each class are its arguments in a recipe, but for `seed`.
SELF_SUPERVISED: Mapping[str, type[MoCo]] = {"moco": MoCo}

"""IFVD: Intra-class Feature Variation Distillation (Wang et al., ECCV 2020), for segmentation.

L = l_fv L_fv + l_kd L_kd + l_ad L_adversary, of logits z (N, K, h, w) and last maps f (N, C, h, w):

* L_fv = mean over images and pixels of (v_s - v_t)^2, v the cosine of a pixel's feature and the
  mean feature of its class in its image (its sum divided by the pixels + 1e-6). A pixel without a
  class has v = 1. Labels are brought to the map's size by nearest neighbour.
* L_kd = KL(p_t || p_s) of the classes, mean over every number (N K h w), as the released code has
  it: 1 / K of the mean over pixels.
* L_adversary and the discriminator are those of SKD (`skd.py`, `blocks/adversary.py`); it learns by
  Adam (4e-4, betas 0.9 and 0.99, the recipe's schedule), from 0.1 times its loss.

Taps: logits and last maps of both; labels. Weights 200, 10, 0.001 are those of the released code
(YukangWang/IFVD, options.py); a term of weight 0 is not computed. The loop over classes of the
released code is one product with the labels' indicator here. The student's maps are enlarged to the
teacher's size.

Paper (DLKD Table IV, Cityscapes val, PSPNet-R101 -> PSPNet-R18): 74.54; student alone 69.10.
Measured here: benchmarks/results/segmentation.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, mse_loss

from compress.data.batch import Batch
from compress.data.dense.masked_images import IGNORE_INDEX
from compress.methods.blocks.adversary import AdversarialMethod
from compress.methods.contract import (
    MethodContext,
    OwnOptimizer,
    Views,
    enlarged_to,
    first,
    last_map,
    logits_of,
)
from compress.methods.kd import kd_loss
from compress.precision import in_float32

_LEAST = 1e-6  # is added to the pixels of a class


@in_float32
def ifvd_loss(student_map: Tensor, teacher_map: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean squared difference of the pixels' cosines to the mean of their class.

    Args:
        student_map: (N, C_s, h, w).
        teacher_map: (N, C_t, h, w).
        labels: (N, h, w), 255 where a pixel has no class.
        classes: K.
    """
    student, teacher = (_variation(m, labels, classes) for m in (student_map, teacher_map))
    return mse_loss(student, teacher)


def _variation(maps: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cosines (N, h, w) of each pixel and the mean of its class."""
    features, flat = maps.flatten(2), labels.flatten(1)
    numbers = torch.arange(classes, device=labels.device)
    members = (flat[:, :, None] == numbers).to(features.dtype)
    means = features @ members / (members.sum(1) + _LEAST)[:, None]  # (N, C, K)
    own = means @ members.transpose(1, 2)
    own = own.where((flat != IGNORE_INDEX)[:, None], features)
    return cosine_similarity(features, own, dim=1).view_as(labels)


class IFVD(AdversarialMethod):
    """Variation within classes, soft targets, and an adversary."""

    reads_labels = True

    def __init__(
        self,
        context: MethodContext,
        *,
        variation_weight: float = 200.0,
        kd_weight: float = 10.0,
        adversary_weight: float = 0.001,
        adversary_lr: float = 4e-4,
    ) -> None:
        weights = (variation_weight, kd_weight, adversary_weight)
        super().__init__(context, weights, OwnOptimizer("adam", adversary_lr, betas=(0.9, 0.99)))
        self.variation_weight, self.kd_weight = variation_weight, kd_weight

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `variation`, `kd`, `adversary` and `discriminator`."""
        teacher, terms = teachers[0], dict[str, Tensor]()
        target, classes = logits_of(first(teacher)), self.context.num_classes
        logits = enlarged_to(self.logits(first(student)), target)
        if self.variation_weight:
            features = last_map(teacher)
            size = features.shape[-2:]
            labels = interpolate(batch.labels[:, None].float(), size=size)[:, 0].long()
            maps = enlarged_to(last_map(student), features)
            loss = ifvd_loss(maps, features, labels, classes)
            terms["variation"] = self.variation_weight * loss
        if self.kd_weight:
            terms["kd"] = self.kd_weight * kd_loss(logits, target, 1.0) / classes
        return terms | self.adversary_terms(logits, target, batch, own=0.1)

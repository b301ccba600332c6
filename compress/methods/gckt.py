"""GCKT: global contrastive transfer of WCoRD (Chen et al.; CVPR 2021), by its dual form.

Wasserstein Contrastive Representation Distillation. L = L_s + L_t with the anchors, banks and draws
of CRD (see `crd.py` for every letter), of which the student's side is

L_s = -(1/N) sum_n (s_n0 - (1/K) sum_k s_nk), s_nk = v_n . b_nk / tau,

the critic's mean on pairs of one image less its mean on pairs of two: the dual form of the
Wasserstein distance between the joint distribution and the product of the marginals, where CRD has
a likelihood. A critic of that form must not be steep. s is linear in vectors of length 1, and the
linear layers g are divided by their largest singular value (spectral norm), found by power
iteration, with a step of it after each step of the training.

Taps: pooled vectors. No code is released, and the paper was at hand in summaries alone. From them:
the dual form and spectral norm. Chosen here: the critic s, and the mean over the K negatives. With
CRD's bounded critic h = P / (P + K/M) in place of s, and a sum or a mean over K = 16384, training
lowers every score alike and comes to rest without telling images apart (own image found among
2,000: never), which the test of this file would show. Everything else is as CRD has it: weight 0.8,
temperature, momentum and widths. Embeddings have length 1 after the layers, so that of spectral
norm the share of the bias is left. The local part is `lckt`, both together are `wcord`.

Paper (CoCoRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 75.45.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress.methods.blocks import memory_bank
from compress.methods.crd import CRD, Contrast
from compress.precision import in_float32


@in_float32
def gckt_loss(scores: Tensor) -> Tensor:
    """One side of the loss.

    Args:
        scores: s, (N, 1 + K): the positive first.

    Returns:
        A scalar from -2 / tau to 2 / tau in float32 or wider, mean over the images.
    """
    return (scores[:, 1:].mean(1) - scores[:, 0]).mean()


class Critic(Contrast):
    """`Contrast` whose layers have spectral norm 1, and whose normalisers are not read."""

    directions: Tensor  # of the largest singular values: (2, D), of student and teacher

    def __init__(self, student_width: int, teacher_width: int, features: int, rows: int) -> None:
        super().__init__(student_width, teacher_width, features, rows)
        decomposed = [torch.linalg.svd(layer.weight.detach()) for layer in self._layers]
        self.register_buffer("directions", torch.stack([svd.U[:, 0] for svd in decomposed]))

    @property
    def _layers(self) -> tuple[nn.Linear, nn.Linear]:
        return self.student_embedding, self.teacher_embedding

    def embed(self, features: Tensor, layer: nn.Linear) -> Tensor:
        """See `Contrast`; the weight is divided by its spectral norm, which has a gradient."""
        direction = self.directions[int(layer is self.teacher_embedding)]
        other = normalize(layer.weight.detach().t() @ direction, dim=0)
        return memory_bank.embed(
            features, layer.weight / (direction @ layer.weight @ other), layer.bias
        )

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """See `Contrast`; then a power iteration."""
        super().after_step(momentum)
        for direction, layer in zip(self.directions, self._layers, strict=True):
            direction.copy_(normalize(layer.weight @ (layer.weight.t() @ direction), dim=0))

    def loss(self, scores: Tensor, normaliser: Tensor) -> Tensor:
        """See `gckt_loss`."""
        return gckt_loss(scores)


class GCKT(CRD):
    """CRD's contrast by a linear critic, see the module's docstring."""

    term: ClassVar[str] = "gckt"
    contrast: ClassVar[type[Contrast]] = Critic

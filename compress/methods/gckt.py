"""GCKT: global contrastive transfer of WCoRD (Chen et al.; CVPR 2021), by its dual form.

Wasserstein Contrastive Representation Distillation. L = L_s + L_t with the anchors, banks, draws
and normalisers of CRD (see `crd.py` for every letter), of which the student's side is

L_s = -(1/N) sum_n (h_n0 - sum_k h_nk), h_nk = P_nk / (P_nk + K/M),

the critic h on the pair of one image less K times its mean on pairs of two images: the dual form of
the Wasserstein distance between joint and product of the marginals, where CRD has the likelihood of
h. The critic is kept from being steep: the linear layers g are divided by their largest singular
value (spectral norm), by power iteration, with a step of it after each step of the training.

Taps: pooled vectors. No code is released. From the paper: dual form, the factor K and spectral
norm. Chosen here: everything else as CRD has it, its temperature, momentum, widths and weight 0.8
included; and that embeddings have length 1 after the layers, as there, so that of spectral norm the
share of the bias is left. The local part is `lckt`, both together are `wcord`.

Paper (CoCoRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 75.45.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress.methods.blocks import memory_bank
from compress.methods.crd import CRD, Contrast
from compress.precision import in_float32


@in_float32
def gckt_loss(scores: Tensor, normaliser: Tensor, rows: int) -> Tensor:
    """One side of the loss.

    Args:
        scores: v . b / tau, (N, 1 + K): the positive first.
        normaliser: Z, a positive scalar.
        rows: M, the training images.

    Returns:
        A scalar from -1 to K in float32 or wider, mean over the images.
    """
    noise = (scores.shape[1] - 1) / rows
    critic = (scores - (normaliser * noise).log()).sigmoid()  # P / (P + noise)
    return (critic[:, 1:].sum(1) - critic[:, 0]).mean()


class Critic(Contrast):
    """`Contrast` whose layers have spectral norm 1."""

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
        return gckt_loss(scores, normaliser, self.rows)


class GCKT(CRD):
    """CRD's contrast by the critic itself, see the module's docstring."""

    term: ClassVar[str] = "gckt"
    contrast: ClassVar[type[Contrast]] = Critic

"""SKD: Structured Knowledge Distillation for Semantic Segmentation (Liu et al., CVPR 2019).

L = l_pi L_pixel + l_pa L_pair + l_ho L_adversary, of logits z (N, K, h, w) and last maps f:

* L_pixel = -(1 / hw) sum_n sum_pixels sum_k p_t ln p_s, p the softmax over classes: summed over the
  images of the step, as the released code sums it.
* L_pair = (1 / N) sum_n (1 / m^2) sum_ij (a_ij^t - a_ij^s)^2: f is max-pooled to m nodes, each
  `pool` of the map's height and width (a half: 4 of them, up to 9 where a half is rounded down),
  and a_ij is the cosine of nodes i and j. The nodes' lengths get no gradient, as in the release.
* L_adversary = -mean D(z_s). The discriminator D (`blocks/adversary.py`) learns beside the student,
  with an SGD of its own (learning rate 4e-4, the recipe's schedule), from l_ho times the WGAN-GP
  loss of z_s and z_t. Both read the same forward pass and D's weights before its step, which equals
  the released code's two turns.

Taps: logits and last maps of both. Weights 10, 0.5, 0.1 are those of the released script
(irfanICMLL/structure_knowledge_distillation); a term of weight 0 is not computed, and without the
last there is no discriminator. The student's maps are enlarged to the teacher's size.

Paper (DLKD Table IV, Cityscapes val, PSPNet-R101 -> PSPNet-R18): 72.70; student alone 69.10.
Measured here: benchmarks/results/segmentation.md.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import log_softmax, max_pool2d, softmax

from compress.data.batch import Batch
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
from compress.precision import in_float32

_LEAST = 1e-8  # is added to a node's length


@in_float32
def skd_pixel_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy of the teacher's predictions, mean over images and pixels.

    Args:
        student_logits: (N, K, h, w).
        teacher_logits: (N, K, h, w).
    """
    entropy = -(softmax(teacher_logits, 1) * log_softmax(student_logits, 1)).sum(1)
    return entropy.mean()


@in_float32
def skd_pair_loss(student_map: Tensor, teacher_map: Tensor, pool: float = 0.5) -> Tensor:
    """Squared difference of the cosines of all pairs of nodes, mean over pairs and images.

    Args:
        student_map: (N, C_s, h, w).
        teacher_map: (N, C_t, h, w).
        pool: height and width of a node as shares of the map's.
    """
    height, width = (max(1, int(side * pool)) for side in teacher_map.shape[-2:])
    student, teacher = (
        _cosines(max_pool2d(maps, (height, width), (height, width), ceil_mode=True))
        for maps in (student_map, teacher_map)
    )
    return (teacher - student).square().mean()


def skd_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    pixel_weight: float = 10.0,
    pair_weight: float = 0.5,
) -> Tensor:
    """The pixel-wise loss, summed over the images, and the pair-wise one; no adversary.

    Args:
        student: logits (N, K, h, w) and last map (N, C_s, h, w).
        teacher: logits (N, K, h, w) and last map (N, C_t, h, w).
    """
    (logits, maps), (targets, known) = student, teacher
    pixels = len(logits) * skd_pixel_loss(logits, targets)
    return pixel_weight * pixels + pair_weight * skd_pair_loss(maps, known)


def _cosines(nodes: Tensor) -> Tensor:
    """Cosines (N, m, m) of the nodes of (N, C, h, w)."""
    flat = nodes.flatten(2)
    unit = flat / (flat.square().sum(1, keepdim=True).sqrt() + _LEAST).detach()
    return unit.transpose(1, 2) @ unit


class SKD(AdversarialMethod):
    """Pixels, pairs of nodes, and an adversary."""

    def __init__(
        self,
        context: MethodContext,
        *,
        pixel_weight: float = 10.0,
        pair_weight: float = 0.5,
        adversary_weight: float = 0.1,
        pool: float = 0.5,
        adversary_lr: float = 4e-4,
    ) -> None:
        if not 0 < pool <= 1:
            raise ValueError(f"pool is a share above 0 and up to 1, got {pool}")
        weights = (pixel_weight, pair_weight, adversary_weight)
        super().__init__(context, weights, OwnOptimizer("sgd", adversary_lr, weight_decay=5e-4))
        self.pixel_weight, self.pair_weight, self.pool = pixel_weight, pair_weight, pool

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `pixel`, `pair`, `adversary` and `discriminator`."""
        teacher, terms = teachers[0], dict[str, Tensor]()
        target = logits_of(first(teacher))
        logits = enlarged_to(self.logits(first(student)), target)
        if self.pixel_weight:
            loss = batch.whole * skd_pixel_loss(logits, target)
            terms["pixel"] = self.pixel_weight * loss
        if self.pair_weight:
            maps = enlarged_to(last_map(student), last_map(teacher))
            terms["pair"] = self.pair_weight * skd_pair_loss(maps, last_map(teacher), self.pool)
        own = self.adversary_weight
        return terms | self.adversary_terms(logits, target, batch, own=own)

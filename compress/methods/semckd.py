"""SemCKD: Cross-Layer Distillation with Semantic Calibration (Chen et al., AAAI 2021).

L = 1 / (N L_s) * sum over n, i, j of a_nij * mean over C_j, H, W of (P_ij(F_s^i) - F_t^j)^2_n, with
stage maps F_s^i, i = 1 .. L_s, and F_t^j, j = 1 .. L_t, of student and teacher, N samples. The
weights a_nij = softmax over j of <q_i, k_j>_n / T compare what the samples of a batch look like to
two stages: q_i = MLP_i(A_s^i) and k_j = MLP_j(A_t^j), both (N, B // 4), where A = X X^T (N, N) with
X the flattened map, and an MLP is linear B -> 2 (B // 4), ReLU, linear -> B // 4, rows divided by
their norm. B is the recipe's batch size, T the `temperature`. The projection P_ij is conv 1x1
C_i -> 2 C_j, conv 3x3, both with batch norm and ReLU, conv 1x1 2 C_j -> C_j, none with bias.

Taps: all stage maps of both, every i with every j; where two differ in size the larger is
average-pooled, the student's before P_ij. T = 1 and the quarter of B are those of the authors' code
(in the SimKD repository), as is the division by N L_s. There a last batch smaller than B is left
out; here its A has zero columns up to B, so that every image is learnt from and a full batch has
the published value. The authors' second, unused MLP in each MLP is not here. The gradient also
flows through a. Weight: 400 in either protocol.

Paper (SimKD Table 1, best on test, with CE + KD): resnet32x4 -> resnet8x4 on CIFAR-100
76.23 +- 0.04.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def similarity_rows(maps: Tensor, batch_size: int) -> Tensor:
    """Inner products of the samples' maps (N, C, H, W), zero columns up to the batch size.

    Returns:
        A, (N, batch_size) in float32 or wider.

    Raises:
        ValueError: there are more samples than `batch_size`.
    """
    count = len(maps)
    if count > batch_size:
        raise ValueError(
            f"the method was built for batches of up to {batch_size} images, got {count}"
        )
    flat = maps.flatten(1)
    return pad(flat @ flat.T, (0, batch_size - count))


@in_float32
def embed(similarities: Tensor, mlp: nn.Module) -> Tensor:
    """Queries or keys (N, D) of unit length from rows of similarities (N, B)."""
    return normalize(mlp(similarities))


@in_float32
def calibration(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The weight of each teacher stage for each student stage.

    Args:
        queries: (N, L_s, D).
        keys: (N, L_t, D).

    Returns:
        a, (N, L_s, L_t) in float32 or wider; it sums to 1 over the teacher's stages.
    """
    return (queries @ keys.mT / temperature).softmax(2)


@in_float32
def squared_distances(projected: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two maps (N, C, H, W) of one size, per sample (N,)."""
    return (projected - teacher_map).square().flatten(1).mean(1)


@in_float32
def semckd_loss(weights: Tensor, distances: Tensor) -> Tensor:
    """The weighted sum of distances, mean over samples and student stages.

    Args:
        weights: a, (N, L_s, L_t).
        distances: those of each sample and pair of stages, (N, L_s, L_t).

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    return (weights * distances).sum(2).mean()


def _mlp(batch_size: int) -> nn.Sequential:
    width = batch_size // 4
    return nn.Sequential(nn.Linear(batch_size, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _projection(channels_in: int, channels_out: int) -> nn.Sequential:
    middle = 2 * channels_out
    return nn.Sequential(
        nn.Conv2d(channels_in, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, channels_out, 1, bias=False),
    )


class SemCKD(Method):
    """Queries, keys and a projection for every pair of a student's and a teacher's stage."""

    batch_coupled = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(400)

    def __init__(self, context: MethodContext, *, temperature: float = 1.0) -> None:
        super().__init__(context)
        stage_pairs(context)  # refuses several teachers, and networks without maps
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is above 0, got {temperature}")
        if context.batch_size < 4:
            raise ValueError(
                "the method gives each sample batch_size // 4 numbers and needs a batch size of "
                f"4 or more, got {context.batch_size}"
            )
        self.temperature = temperature
        own, target = context.student.stages, context.teachers[0].taps.stages
        self.queries = nn.ModuleList(_mlp(context.batch_size) for _ in own)
        self.keys = nn.ModuleList(_mlp(context.batch_size) for _ in target)
        self.projections = nn.ModuleList(
            _projection(s.channels, t.channels) for s, t in product(own, target)
        )

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `semckd`."""
        own, target = stages(student), stages(teachers[0])
        weights = calibration(
            self._embed_stages(own, self.queries),
            self._embed_stages(target, self.keys),
            self.temperature,
        )
        distances = []
        for pair, projection in zip(product(own, target), self.projections, strict=True):
            source, goal = pool_to_smaller(*pair)
            distances.append(squared_distances(projection(source), goal))
        return {"semckd": semckd_loss(weights, torch.stack(distances, 1).view_as(weights))}

    def _embed_stages(self, maps: Sequence[Tensor], mlps: nn.ModuleList) -> Tensor:
        size = self.context.batch_size
        rows = [embed(similarity_rows(m, size), mlp) for m, mlp in zip(maps, mlps, strict=True)]
        return torch.stack(rows, dim=1)

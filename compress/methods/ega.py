"""EGA: Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment.

Ma, Chen, Akata; BMVC 2022. With embeddings e_s = A_s f_s and e_t = A_t f_t (N, 256) of the pooled
vectors of a batch and Pearson's correlation r of two rows, over their 256 numbers, L = L_align +
L_head:

* L_align = w_n |r(e_t, e_s) - I| + w_e |r(e_t, e_t) - r(e_s, e_s)|, of matrices (N, N) and their
  Frobenius norms: the nodes of the two graphs of images, and their edges.
* L_head = CE(B_t e_t, y), by which alone A_t and B_t (256 -> K) learn the labels.

Taps: pooled vectors; labels. `node_weight` w_n = 0.8 and `edge_weight` w_e = 0.3 are those of the
script that the authors released (yccm/EGA; its command line begins with 0.24 for the edges, its
class with 1 and 0.3). The teacher's layers have an SGD of their own with learning rate 0.01, which
no schedule changes, as released. There e_s is what the student's classifier reads; here the student
keeps its own classifier, and A_s trains beside it, so that the product has no further layer. Their
teacher's layers were trained before, on the same labels; here both begin together. A row that
hardly varies fades out of the correlations (`blocks.directions`), where the code divides by 0.

The tables of DCD and CRD that name EGA print no number for it.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.data.batch import Batch
from compress.methods.blocks.directions import unit_rows
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    OwnOptimizer,
    ParameterGroup,
    Views,
    pooled,
    pooled_widths,
    published,
)
from compress.precision import in_float32


@in_float32
def ega_loss(
    student: Tensor, teacher: Tensor, *, node_weight: float = 0.8, edge_weight: float = 0.3
) -> Tensor:
    """L_align.

    Args:
        student: e_s, (N, D).
        teacher: e_t, (N, D).

    Returns:
        A scalar >= 0 in float32 or wider, of the whole batch.
    """
    own, known = (unit_rows(rows - rows.mean(1, keepdim=True)) for rows in (student, teacher))
    nodes = known @ own.t() - torch.eye(len(own), dtype=own.dtype, device=own.device)
    edges = known @ known.t() - own @ own.t()
    return node_weight * _length(nodes) + edge_weight * _length(edges)


def _length(matrix: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(matrix)
    return length


class EGA(Method):
    """Graphs of the images of a batch by embeddings of both networks."""

    batch_coupled = True
    reads_labels: ClassVar[bool] = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        node_weight: float = 0.8,
        edge_weight: float = 0.3,
        feature_width: int = 256,
        teacher_lr: float = 0.01,
    ) -> None:
        super().__init__(context)
        weights = (node_weight, edge_weight)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"weights are at least 0 and not both 0, got {weights}")
        if feature_width < 2:
            raise ValueError(f"feature_width is at least 2, got {feature_width}")
        if teacher_lr <= 0:
            raise ValueError(f"teacher_lr is above 0, got {teacher_lr}")
        if not context.num_classes:
            raise ValueError("the method reads labels; there are no classes")
        student, teacher = pooled_widths(context)
        self.node_weight, self.edge_weight = weights
        self.student_embedding = nn.Linear(student, feature_width)
        self.teacher_embedding = nn.Linear(teacher, feature_width)
        self.teacher_head = nn.Linear(feature_width, context.num_classes)
        self.teacher_optimizer = OwnOptimizer("sgd", teacher_lr, weight_decay=5e-4, scheduled=False)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The teacher's layers, which have an optimiser of their own."""
        layers = [*self.teacher_embedding.parameters(), *self.teacher_head.parameters()]
        return [ParameterGroup(layers, optimizer=self.teacher_optimizer)]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `align`, whose gradient stops at the teacher's layers, and `head`."""
        own = self.student_embedding(pooled(student))
        known = self.teacher_embedding(pooled(teachers[0]))
        align = ega_loss(
            own, known.detach(), node_weight=self.node_weight, edge_weight=self.edge_weight
        )
        return {"align": align, "head": _head_loss(self.teacher_head(known), batch.labels)}


@in_float32
def _head_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels)

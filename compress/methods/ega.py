"""EGA: Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment (BMVC 2022).

By Ma, Chen and Akata. L = w_n |C[T, S] - I| + w_e |C[T, T] - C[S, S]|, with Frobenius norms, not
squared, of blocks of the matrix C (2N, 2N) of Pearson correlations between the 2N embeddings of a
batch of N images: e_s = E_s f_s of the student (S) and e_t = E_t f_t of the teacher (T), with
pooled vectors f, trained linear layers E to D numbers, and the correlation of two rows taken over
their D entries. The first term aligns an image's two nodes and parts them from those of the other
images, the second aligns the edges.

Both embeddings have a linear classifier of their own. The student predicts by W_s e_s + b_s: that
is what hard labels and soft targets train, and what ships, the two layers merged into one, in place
of its own classifier. The teacher's, W_t e_t + b_t, serves to train E_t, by the cross entropy of
the labels, the term `teacher`, with an SGD of its own: learning rate 0.01 without schedule,
momentum 0.9, weight decay 5e-4. L moves neither: the released code lets its gradient flow into E_t
but sets it to 0 before the teacher's step, so here e_t is a constant in L. The teacher needs no
classifier, so it may be self-supervised, as in the paper (CLIP).

Taps: pooled vectors. D = 256; w_n = 0.8 and w_e = 0.3 are those of the released script for an RN101
(yccm/EGA; the class has 1 and 0.3, the command line 0.8 and 0.24). A norm grows with the batch: its
N is 64. That code divides by the standard deviation of each embedding; here one whose deviation is
below 1e-3 of the batch's mean fades out, to 0 where all its numbers are equal
(`blocks.directions`), where the code gives NaN. A batch of one has no edges.

Paper (BMVC 2022): it distils CLIP; for resnet32x4 -> resnet8x4 there is no number.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.methods.blocks.directions import unit_rows
from compress.methods.blocks.heads import label_loss
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    OwnOptimizer,
    ParameterGroup,
    Views,
    first,
    pooled,
    pooled_widths,
    published,
    require_plain_pooling,
)
from compress.methods.simkd_v import Merged, merge_layers
from compress.precision import in_float32
from compress.taps import Taps, encoder_until


@in_float32
def ega_loss(
    student: Tensor, teacher: Tensor, *, node_weight: float = 0.8, edge_weight: float = 0.3
) -> Tensor:
    """L of a batch.

    Args:
        student: e_s, (N, D).
        teacher: e_t, (N, D).
        node_weight: w_n.
        edge_weight: w_e.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    own, known = (unit_rows(e - e.mean(1, keepdim=True)) for e in (student, teacher))
    same = torch.eye(len(own), dtype=own.dtype, device=own.device)
    node: Tensor = torch.linalg.matrix_norm(known @ own.t() - same)
    edge: Tensor = torch.linalg.matrix_norm(known @ known.t() - own @ own.t())
    return node_weight * node + edge_weight * edge


class EGA(Method):
    """Two embeddings with classifiers, whose correlations in a batch are aligned."""

    batch_coupled = True
    reads_labels = True
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
        student, teacher = pooled_widths(context)
        if context.student.last_map is None:
            raise ValueError(
                "what ships is a classifier of the method's own behind the student's global "
                "average pooling, in which this student does not end"
            )
        require_plain_pooling(context.student, "student")
        for name, weight in (("node_weight", node_weight), ("edge_weight", edge_weight)):
            if not weight >= 0:
                raise ValueError(f"{name} is at least 0, got {weight}")
        if feature_width < 2:
            raise ValueError(f"feature_width is at least 2, got {feature_width}")
        if not teacher_lr > 0:
            raise ValueError(f"teacher_lr is above 0, got {teacher_lr}")
        self.node_weight = node_weight
        self.edge_weight = edge_weight
        self.teacher_lr = teacher_lr
        self.last_map = context.student.last_map
        self.embedding = nn.Linear(student, feature_width)
        self.classifier = nn.Linear(feature_width, context.num_classes)
        self.teacher_embedding = nn.Linear(teacher, feature_width)
        self.teacher_classifier = nn.Linear(feature_width, context.num_classes)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The teacher's embedding and classifier have an optimiser of their own."""
        modules = self.teacher_embedding, self.teacher_classifier
        optimizer = OwnOptimizer("sgd", self.teacher_lr, weight_decay=5e-4, scheduled=False)
        return [ParameterGroup([p for m in modules for p in m.parameters()], optimizer=optimizer)]

    def extend(self, student: Taps) -> Taps:
        """Add `embedded`, e_s."""
        return Taps(student, embedded=self.embedding(student.tensor("pooled")))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `ega`, and `teacher` of the teacher's classifier."""
        own = first(student).tensor("embedded")
        known = self.teacher_embedding(pooled(teachers[0]))
        weights = {"node_weight": self.node_weight, "edge_weight": self.edge_weight}
        return {
            "ega": ega_loss(own, known.detach(), **weights),
            "teacher": label_loss(self.teacher_classifier(known), batch.labels),
        }

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        logits: Tensor = self.classifier(student.tensor("embedded"))
        return logits

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        encoder = encoder_until(student, self.last_map)
        return Merged(encoder, nn.Sequential(self.embedding, self.classifier))

    def ship(self, student: nn.Module) -> nn.Module:
        """The two layers merged into one: the student's own parameters and not one more."""
        encoder = encoder_until(student, self.last_map)
        return Merged(encoder, merge_layers([self.embedding], [self.classifier]))

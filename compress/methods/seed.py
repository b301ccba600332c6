"""SEED: Self-supervised Distillation for Visual Representation.

Fang et al., ICLR 2021. With z_t the teacher's embedding of an image and z_s the student's, through
a head (linear to its own width, ReLU, linear to the teacher's), both of length 1, and a queue D of
the teacher's latest embeddings d_1 ... d_K, D+ = (z_t, d_1, ..., d_K):

    L = mean over images of -sum_j p_j log q_j,
    p = softmax(z_t D+ / tau_t), q = softmax(z_s D+ / tau_s).

No label is read: without labels (`data: {labels: false}`) this is the whole loss. The queue takes
z_t after each step, in the order in which one process has the images. One view of an image is shown
to both networks; the released code makes it as MoCo v2 does (`data: {augment: moco}`).

Taps: pooled vectors. Defaults are the released code's: tau_s = 0.2, K = 65,536, tau_t = 1e-4, with
which p is 1 at z_t itself but for images nearly alike; the text prints tau_t = 0.01
(`teacher_temperature: 0.01`). Its training: 200 epochs of batches of 256, learning rate 0.03
(cosine), weight decay 1e-4. What differs: z_t is the teacher's pooled vector, since a teacher here
has no projection head; the code takes the head's output, of width 128 (give a network whose output
that is, with `head: none`, for the same). K need not be a multiple of the batch.

Paper: on ImageNet, students of MoCo v2's ResNet-50; no CIFAR results.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress.data.batch import Batch
from compress.methods.blocks.key_queue import KeyQueue
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    pooled_widths,
    published,
)
from compress.precision import in_float32


@in_float32
def seed_loss(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    *,
    temperature: float = 0.2,
    teacher_temperature: float = 1e-4,
) -> Tensor:
    """L.

    Args:
        student: z_s, (N, D); normalised here.
        teacher: z_t of the same images, (N, D), constants; normalised here.
        queue: d_j, (K, D), of length 1.

    Returns:
        A scalar > 0 in float32 or wider.
    """
    own, known = normalize(student), normalize(teacher.detach())
    target = (_scores(known, known, queue) / teacher_temperature).softmax(1)
    log_shares = (_scores(own, known, queue) / temperature).log_softmax(1)
    return -(target * log_shares).sum(1).mean()


def _scores(rows: Tensor, known: Tensor, queue: Tensor) -> Tensor:
    """Cosines (N, 1 + K) with the teacher's embedding of the same image and with the queue."""
    return torch.cat([(rows * known).sum(1, keepdim=True), rows @ queue.t()], 1)


@in_float32
def _unit(rows: Tensor) -> Tensor:
    return normalize(rows)


class SEED(Method):
    """A head and a queue of the teacher's embeddings, see the module's docstring."""

    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float = 0.2,
        teacher_temperature: float = 1e-4,
        queue_size: int = 65536,
    ) -> None:
        super().__init__(context)
        for name, value in (
            ("temperature", temperature),
            ("teacher_temperature", teacher_temperature),
        ):
            if value <= 0:
                raise ValueError(f"{name} is above 0, got {value}")
        student, teacher = pooled_widths(context)
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.head = nn.Sequential(
            nn.Linear(student, student), nn.ReLU(), nn.Linear(student, teacher)
        )
        self.queue = KeyQueue(queue_size, teacher)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `seed`."""
        own, known = student[0], teachers[0][0]
        assert own is not None and known is not None
        keys = known.tensor("pooled")
        loss = seed_loss(
            self.head(own.tensor("pooled")),
            keys,
            self.queue.keys,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
        if self.training:
            self.queue.collect(_unit(keys), batch.rows)
        return {"seed": loss}

    def after_step(self) -> None:
        """Move the queue."""
        self.queue.write()

    def notes(self) -> list[str]:
        """The memory of the queue."""
        return [self.queue.note()]

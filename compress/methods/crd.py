"""CRD: Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020).

L = L_s + L_t, the student and the teacher in turn as the anchor. For the student,
L_s = -(1/N) sum_n [ log(P_n0 / (P_n0 + K/M + e)) + sum_k log((K/M) / (P_nk + K/M + e)) ],
P_nk = exp(v_n . b_nk / tau) / Z_s, with embeddings v = g(f) / |g(f)| of N pooled features f (N, C)
by a linear g (C -> D) each of student and teacher, both trained; b_n0 the row of the teacher's bank
(M, D) of image n itself (`exact`) or of an image of its class (`relax`), b_nk, k = 1..K, those of
images of other classes; M training images, temperature tau, e = 1e-7. L_t has the teacher's v and
the student's bank. Z_s, Z_t = M mean(exp(v . b / tau)) on the first batch, then constant. Banks are
constants in L; after the step the row of image n becomes momentum * row + (1 - momentum) * v_n,
normalised. Several teachers: the sum of L over them (section 3.4), each with embeddings, banks and
Z of its own, here with the same draws.

Taps: pooled vectors. K = 16384, D = 128, momentum 0.5, e, and weight 0.8 as in paper and code; tau
is 0.07 in the code and in the paper on ImageNet, but 0.1 in the paper on CIFAR-100. The paper's
eq. 10 prints 1 - log h for log(1 - h), as its eq. 18 has it. Z is part of the state and set after a
step, so that a trial pass leaves it alone. Draws are without replacement where every class leaves K
other images (the code decides image by image), and with replacement otherwise or above 131,072
training images (as its ImageNet loader). Several processes make the draws, the Z and the banks of
one; in parts of an accumulated first batch alone Z is that of the part.

Paper (Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 75.51. SimKD Table 1, with KD,
best on test: 75.59 +- 0.07.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from compress.data.batch import Batch
from compress.distributed.collectives import all_gather
from compress.methods.blocks import memory_bank
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    pooled,
    pooled_widths,
    published,
)
from compress.precision import in_float32

EPSILON = 1e-7
# exp(1 / tau) and Z must fit float32; the paper tries 0.02 to 0.3.
LOWEST_TEMPERATURE = 0.02


@in_float32
def crd_loss(scores: Tensor, normaliser: Tensor, rows: int) -> Tensor:
    """One side of the loss.

    Args:
        scores: v . b / tau, (N, 1 + K): the positive first.
        normaliser: Z, a positive scalar.
        rows: M, the training images.

    Returns:
        A scalar > 0 in float32 or wider.
    """
    noise = (scores.shape[1] - 1) / rows
    log_p = scores - normaliser.log()
    # log(1 + x) of a small x: the quotients of the formula would round most of it away.
    positive = -logsigmoid(log_p[:, 0] - math.log(noise + EPSILON))
    negative = ((log_p[:, 1:].exp() + EPSILON) / noise).log1p()
    return (positive.sum() + negative.sum()) / len(scores)


class Contrast(nn.Module):
    """Embeddings, banks and normalisers of the student and one teacher."""

    student_bank: Tensor
    teacher_bank: Tensor
    normalisers: Tensor  # Z_s and Z_t; 0 is not set yet

    def __init__(self, student_width: int, teacher_width: int, features: int, rows: int) -> None:
        super().__init__()
        self.features = features
        self.rows = rows
        self.student_embedding = nn.Linear(student_width, features)
        self.teacher_embedding = nn.Linear(teacher_width, features)
        self.register_buffer("student_bank", memory_bank.uniform_bank(rows, features))
        self.register_buffer("teacher_bank", memory_bank.uniform_bank(rows, features))
        self.register_buffer("normalisers", torch.zeros(2))
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._is_first = True  # no step has set the normalisers yet
        # A trial pass puts the state back afterwards, and what it saw is not to be written.
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def forward(
        self, student: Tensor, teacher: Tensor, images: Tensor, drawn: Tensor, temperature: float
    ) -> Tensor:
        """L of pooled features (N, C_s), (N, C_t) of `images` (N,) against `drawn` (N, 1 + K)."""
        v_s = self.embed(student, self.student_embedding)
        v_t = self.embed(teacher, self.teacher_embedding)
        by_student = self.scores(v_s, self.teacher_bank, images, drawn) / temperature
        by_teacher = self.scores(v_t, self.student_bank, images, drawn) / temperature
        both = (by_student.flatten(1), by_teacher.flatten(1))
        means = torch.stack([s.detach().exp().mean(1) for s in both], 1)
        z_s, z_t = self._normalisers(all_gather(means) if self._is_first else means)
        if self.training:
            self._seen.append((images, torch.cat([v_s, v_t, means], 1).detach()))
        return self.loss(by_student, z_s) + self.loss(by_teacher, z_t)

    def embed(self, features: Tensor, layer: nn.Linear) -> Tensor:
        """Features (N, C) as anchors (N, D) of length 1."""
        return memory_bank.embed(features, layer.weight, layer.bias)

    def scores(self, anchors: Tensor, bank: Tensor, images: Tensor, drawn: Tensor) -> Tensor:
        """Scores (N, ..., 1 + K) of anchors (N, D) of `images` (N,) against rows of a bank."""
        return memory_bank.bank_scores(anchors, bank, drawn)

    def loss(self, scores: Tensor, normaliser: Tensor) -> Tensor:
        """One side of the loss, see `crd_loss`."""
        return crd_loss(scores, normaliser, self.rows)

    def _normalisers(self, means: Tensor) -> Tensor:
        return torch.where(self.normalisers > 0, self.normalisers, means.mean(0) * self.rows)

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Set what is not set, and write the rows of what was seen in training since the last."""
        if not self._seen:
            return
        images, seen = (all_gather(torch.cat(rows)) for rows in zip(*self._seen, strict=True))
        self._seen = []
        self._is_first = False
        v_s, v_t, means = torch.split(seen, [self.features, self.features, 2], dim=1)
        self.normalisers.copy_(self._normalisers(means))
        memory_bank.write_rows(self.student_bank, images, v_s, momentum)
        memory_bank.write_rows(self.teacher_bank, images, v_t, momentum)


def _forget(contrast: Contrast, _: object) -> None:
    contrast._seen = []
    contrast._is_first = bool((contrast.normalisers == 0).any())


class CRD(Method):
    """Contrast against memory banks, see the module's docstring."""

    knows_images = True
    reads_labels = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(0.8)
    term: ClassVar[str] = "crd"
    contrast: ClassVar[type[Contrast]] = Contrast

    def __init__(
        self,
        context: MethodContext,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        features: int = 128,
        mode: Literal["exact", "relax"] = "exact",
    ) -> None:
        super().__init__(context)
        refuse_impossible(temperature, momentum, features)
        if mode not in ("exact", "relax"):
            raise ValueError(f"mode is exact or relax, got {mode}")
        self.temperature = temperature
        self.momentum = momentum
        self.mode = mode
        rows = len(context.labels)
        self.sampler = memory_bank.ClassSampler(context.labels, negatives)
        self.contrasts = nn.ModuleList(
            self.contrast(*pooled_widths(one), features, rows) for one in context.for_each_teacher()
        )
        self._bank_note = memory_bank.bank_note(rows, features, len(context.teachers))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `crd`, by the name of the class's `term`."""
        drawn = self.draw_rows(batch)
        terms = [
            contrast(pooled(student), pooled(teacher), batch.index, drawn, self.temperature)
            for contrast, teacher in zip(self.contrasts, teachers, strict=True)
        ]
        return {self.term: torch.stack(terms).sum()}

    def draw_rows(self, batch: Batch) -> Tensor:
        """Rows of the banks for each image of a batch: the positive, then the negatives."""
        generator, place = self.generator(batch), (batch.start, batch.whole)
        negatives = self.sampler.others(batch.labels, generator, *place)
        exact = self.mode == "exact"
        positive = batch.index if exact else self.sampler.same(batch.labels, generator, *place)
        return torch.cat([positive[:, None], negatives], 1)

    def after_step(self) -> None:
        """See `Method.after_step`."""
        for contrast in self.contrasts:
            contrast.after_step(self.momentum)  # type: ignore[operator]

    def notes(self) -> list[str]:
        """The memory of the banks, and whether draws repeat."""
        return [self._bank_note, *self.sampler.notes()]


def refuse_impossible(temperature: float, momentum: float, features: int) -> None:
    """Raise ValueError for settings of scores and banks that are none."""
    if temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"temperature is at least {LOWEST_TEMPERATURE}, got {temperature}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is from 0 to below 1, got {momentum}")
    if features < 1:
        raise ValueError(f"features is at least 1, got {features}")

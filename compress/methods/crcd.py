"""CRCD: Complementary Relation Contrastive Distillation (Zhu et al.; CVPR 2021).

What CRD does with embeddings, done with relations of images. L = L_s + L_t, the loss of `crd.py`
with other scores: for the student, image n, anchor j and row k = 0..K of those drawn,

s_njk = cos(v_n - a_j, b_nk - a_j) / tau, j = 1..N except n itself,

with the student's embeddings v of a batch of N images, and a_j and b_nk rows of the teacher's bank:
a_j that of image j of the batch, b_n0 that of image n, b_nk, k = 1..K, those of images of other
classes. So the relation of n to the anchor, with the student's n, is to be like that with the
teacher's n, and unlike those of others. L_t has the teacher's v and the student's bank. The loss is
the mean over the N (N - 1) pairs (n, j). Embeddings, banks, Z and draws are CRD's, but the banks
begin with rows of length 1.

Relations are of two elements, the pooled vectors f, the term `features`, and their gradients g_n of
the cross entropy of image n, the term `gradients` times `gradient_weight`. Behind a linear
classifier W (K, C) g_n = W' (softmax(z_n) - y_n) for logits z and the label y as a unit vector, so
no backward pass is needed, and the student learns through it by z and W. `gradient` chooses:
`relations` is L of g / |g| with embeddings and banks of its own, the paper's; `cosine` is
10 (1 - mean_n cos(g^t_n, g^s_n)), for networks of one width, which the released code calls mse and
has by default; `none`.

Taps: pooled vectors, and logits for g. K = 500, tau = 0.05, D = 128, momentum 0.5 and weights 1 are
those of Lechatelia/CRCD, the authors' partial and untested rewriting of code that is not public.
From the share `until` of the epochs on, 240 of its 250, the terms are left out, as there. Its KD
has weight 0.9 (`weights.kd`), and stays on here. What differs on purpose:

* It multiplies the term of g by that of KD, most likely by mistake; here the terms are added.
* It has the teacher in training mode; here it is in eval mode.
* It takes n as an anchor of itself, too, where b_n0 - a_n = 0 has no direction; it adds 1e-6 to
  every number of a difference, and so makes it (1, ..., 1). Here n is left out, nothing is added,
  and differences shorter than 1e-3 of the mean fade out (`blocks.directions`). The one image of a
  batch of one is its own anchor, since it has no other.
* Its g are as they come from the batch's mean, smaller by N. They vanish as a network gets sure of
  the labels, and only the bias of their embedding is left: with g, and not N times less, that term
  rose from 14.6 to 29.2 in the 6 epochs of `pipelines/quickstart.yaml`. Here L is that of the
  directions g / |g|, and fell to 8.9.

Differences of 128 numbers for each n, j, k, 1 GB at N = 64, are never made: their cosines come from
inner products, N (N - 1) (K + 1) numbers.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 76.42.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress.data.batch import Batch
from compress.distributed.collectives import all_gather
from compress.methods.blocks import memory_bank
from compress.methods.blocks.directions import fading, unit_rows
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    first,
    logits_of,
    only_teacher,
    pooled,
    pooled_widths,
    published,
)
from compress.methods.crd import Contrast, crd_loss, refuse_impossible
from compress.precision import in_float32
from compress.taps import Tapped

COSINE_WEIGHT = 10.0
Gradient = Literal["relations", "cosine", "none"]


@in_float32
def crcd_loss(scores: Tensor, normaliser: Tensor, rows: int) -> Tensor:
    """One side of the loss.

    Args:
        scores: s, (N, A, 1 + K) for A anchors of each image: the positive first.
        normaliser: Z, a positive scalar.
        rows: M, the training images.

    Returns:
        A scalar > 0 in float32 or wider, mean over the pairs of image and anchor.
    """
    return crd_loss(scores.flatten(0, 1), normaliser, rows)


@in_float32
def relation_scores(vectors: Tensor, anchors: Tensor, rows: Tensor) -> Tensor:
    """Cosines of the differences v_n - a_nj and b_nk - a_nj.

    Args:
        vectors: v, (N, D); only these get a gradient.
        anchors: a, (N, A, D).
        rows: b, (N, C, D).

    Returns:
        (N, A, C), 0 where a difference is 0.
    """
    # Rows may be close to each other: without what they share, products keep their digits.
    centre = anchors.mean((0, 1))
    vectors, anchors, rows = vectors - centre, anchors - centre, rows - centre
    squares = anchors.square().sum(2, keepdim=True) + rows.square().sum(2)[:, None]
    lengths = (squares - 2 * anchors @ rows.mT).clamp(min=0).sqrt()
    factors = fading(lengths, lengths.mean()) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
    own = unit_rows((vectors[:, None] - anchors).flatten(0, 1)).view_as(anchors)
    return (own @ rows.mT - (own * anchors).sum(2, keepdim=True)) * factors


@in_float32
def ce_gradients(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Gradients g (N, C) of each image's cross entropy by what a linear classifier reads.

    Args:
        logits: z, (N, K).
        labels: (N,).
        weight: W, (K, C).
    """
    return logits.softmax(1) @ weight - weight[labels]


@in_float32
def unit_directions(gradients: Tensor) -> Tensor:
    """Gradients (N, C) over their lengths; those that are short beside the mean one fade out."""
    return unit_rows(gradients)


@in_float32
def crcd_gradient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The form `cosine` for gradients g (N, C) of both: a scalar from 0 to 20."""
    cosines = (unit_rows(student) * unit_rows(teacher)).sum(1)
    return COSINE_WEIGHT * (1 - cosines.mean())


class Relations(Contrast):
    """CRD's embeddings, banks and normalisers, with scores of relations."""

    def __init__(self, student_width: int, teacher_width: int, features: int, rows: int) -> None:
        super().__init__(student_width, teacher_width, features, rows)
        for bank in (self.student_bank, self.teacher_bank):
            bank.copy_(normalize(bank))

    def scores(self, anchors: Tensor, bank: Tensor, images: Tensor, drawn: Tensor) -> Tensor:
        """Scores (N, A, 1 + K) of embeddings, in relation to the batch's other images."""
        whole = all_gather(images)
        # The own image is sorted to the end, and left out.
        order = (images[:, None] == whole).long().argsort(dim=1, stable=True)
        others = whole[order[:, : max(1, len(whole) - 1)]]
        return relation_scores(anchors, bank[others], bank[drawn])

    def loss(self, scores: Tensor, normaliser: Tensor) -> Tensor:
        """See `crcd_loss`."""
        return crcd_loss(scores, normaliser, self.rows)


class CRCD(Method):
    """Contrast of relations of features and of gradients, see the module's docstring."""

    batch_coupled = True
    gathers_rows = False  # anchors are rows of the banks, whose numbers alone are exchanged
    knows_images = True
    reads_classifier = True
    reads_labels = True
    student_taps = ("pooled", "logits")
    teacher_taps = ("pooled", "logits")
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)
    teacher_weight: Tensor

    def __init__(
        self,
        context: MethodContext,
        *,
        negatives: int = 500,
        temperature: float = 0.05,
        momentum: float = 0.5,
        features: int = 128,
        gradient: Gradient = "relations",
        gradient_weight: float = 1.0,
        until: float = 0.96,
    ) -> None:
        super().__init__(context)
        widths = pooled_widths(context)
        refuse_impossible(temperature, momentum, features)
        _refuse_impossible(gradient, gradient_weight, until)
        rows = len(context.labels)
        self.temperature = temperature
        self.momentum = momentum
        self.gradient = gradient
        self.gradient_weight = gradient_weight
        self.last_epoch = until * context.epochs
        self.sampler = memory_bank.ClassSampler(context.labels, negatives)
        elements = ["features", "gradients"] if gradient == "relations" else ["features"]
        self.relations = nn.ModuleDict({e: Relations(*widths, features, rows) for e in elements})
        self._bank_note = memory_bank.bank_note(rows, features, 1)
        self._student: list[nn.Module] = []
        if gradient != "none":
            teacher = only_teacher(context)
            if teacher.weight is None or context.student.classifier is None:
                raise ValueError(
                    "gradients are those of linear classifiers, and a network has none; take "
                    "gradient: none"
                )
            if gradient == "cosine" and widths[0] != widths[1]:
                raise ValueError(
                    f"gradient: cosine compares gradients of one width, got {widths[0]} and "
                    f"{widths[1]}; take gradient: relations"
                )
            self.register_buffer("teacher_weight", teacher.weight.clone())

    def bind(self, student: Tapped) -> None:
        """See `Method.bind`."""
        if self.gradient != "none":
            # A plain list: registered here, it would be trained and saved twice.
            self._student = [student.network.get_submodule(student.specs.classifier or "")]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `features` and `gradients`, as long as they have weight."""
        if batch.epoch >= self.last_epoch:
            return {}
        generator = self.generator(batch)
        negatives = self.sampler.others(batch.labels, generator, batch.start, batch.whole)
        drawn = torch.cat([batch.index[:, None], negatives], 1)

        def contrast(element: str, own: Tensor, known: Tensor) -> Tensor:
            loss: Tensor = self.relations[element](own, known, batch.index, drawn, self.temperature)
            return loss

        terms = {"features": contrast("features", pooled(student), pooled(teachers[0]))}
        if self.gradient == "none":
            return terms
        (classifier,) = self._student
        weight = classifier.get_parameter("weight")
        own = ce_gradients(logits_of(first(student)), batch.labels, weight)
        known = ce_gradients(logits_of(first(teachers[0])), batch.labels, self.teacher_weight)
        if self.gradient == "relations":
            loss = contrast("gradients", unit_directions(own), unit_directions(known))
        else:
            loss = crcd_gradient_loss(own, known)
        return {**terms, "gradients": self.gradient_weight * loss}

    def after_step(self) -> None:
        """See `Method.after_step`."""
        for relations in self.relations.values():
            relations.after_step(self.momentum)  # type: ignore[operator]

    def notes(self) -> list[str]:
        """The memory of the banks, and whether draws repeat."""
        banks = [f"{element}: {self._bank_note}" for element in self.relations]
        return [*banks, *self.sampler.notes()]


def _refuse_impossible(gradient: str, gradient_weight: float, until: float) -> None:
    if gradient not in ("relations", "cosine", "none"):
        raise ValueError(f"gradient is relations, cosine or none, got {gradient}")
    if not gradient_weight > 0:
        raise ValueError(
            f"gradient_weight is above 0, got {gradient_weight}; without gradients take "
            "gradient: none"
        )
    if not 0 < until <= 1:
        raise ValueError(f"until is above 0 and at most 1, got {until}")

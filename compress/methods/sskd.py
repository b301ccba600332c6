"""SSKD: Knowledge Distillation Meets Self-Supervision (Xu G. et al.; ECCV 2020).

Each image is shown in four turns, by 0, 90, 180 and 270 degrees, mirrored all or none and cropped
each for itself; the student runs on all 4N images of a batch of N at once. With a head h (linear,
ReLU, linear) on the pooled vector of either network and the cosines A (3N, N) of the turned images
and those as they are, of h's outputs:

* First, in a phase, the teacher's head learns to tell of which image a turned one is: the cross
  entropy of softmax(A_t) rows, the teacher itself fixed.
* Then L = l_t L_turned + l_s L_similarity, beside cross entropy and KD on the images as they are.
  L_turned = T^2 KL of the turned images' predictions, L_similarity = t^2 KL(softmax(A_t / t) ||
  softmax(A_s / t)), each a mean over the rows that are kept.
* Rows are kept by how wrong the teacher is, the rank of what is true (the label; the source image)
  among its answers: all where it is right, and of the others the share `turned_ratio` or
  `similarity_ratio` of the lowest ranks. Of equal ranks the first are kept, image by image and
  turn by turn; the released code sorts them in no stable order, so that at the cut it may keep
  others.

Taps: logits and pooled vectors of four views; labels. Weights 0.1 CE, 0.9 KD, l_t = 2.7, l_s = 10,
T = 4, t = 0.5, ratios 1 and 0.75, and 60 epochs of the first phase at 0.05, times 0.1 after 30 and
45, are those of the released code (xuguodong03/SSKD), whose teachers the paper's tables have; the
weights hold in both protocols here.

Paper (DLKD Table I; its teachers are those of SSKD): resnet32x4 -> resnet8x4 on CIFAR-100 76.20.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from compress.data.batch import Batch
from compress.methods.blocks.turns import TURNED_VIEWS, TURNS, of_all_turns, turned_cosines
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Phase,
    Views,
    pooled_widths,
)
from compress.precision import in_float32
from compress.taps import Taps


@in_float32
def sskd_head_loss(projected: Tensor, images: int) -> Tensor:
    """The first phase's loss.

    Args:
        projected: outputs of the teacher's head (M, D) for N images, then for the turned ones.
        images: N.

    Returns:
        A scalar > 0 in float32 or wider, mean over the M - N turned images.
    """
    scores = turned_cosines(projected, images)
    return cross_entropy(scores, _sources(scores))


@in_float32
def sskd_turned_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    ratio: float = 1.0,
) -> Tensor:
    """L_turned.

    Args:
        student_logits: of the images turned by 90, 180 and 270 degrees one after the other, (M, K).
        teacher_logits: (M, K).
        labels: (M,).
        temperature: T > 0.
        ratio: share of the wrong rows that are kept.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the kept rows.
    """
    return _selected(student_logits, teacher_logits, labels, temperature, ratio)


@in_float32
def sskd_similarity_loss(
    student: Tensor,
    teacher: Tensor,
    images: int,
    *,
    temperature: float = 0.5,
    ratio: float = 0.75,
) -> Tensor:
    """L_similarity.

    Args:
        student: outputs of its head (M, D_s) for N images, then for the turned ones.
        teacher: outputs of its head (M, D_t).
        images: N.
        temperature: t > 0.
        ratio: share of the wrong rows that are kept.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the kept rows.
    """
    own, known = (turned_cosines(rows, images) for rows in (student, teacher))
    return _selected(own, known, _sources(known), temperature, ratio)


def sskd_loss(
    logits: tuple[Tensor, Tensor],
    heads: tuple[Tensor, Tensor],
    labels: Tensor,
    *,
    turned_weight: float = 2.7,
    similarity_weight: float = 10.0,
) -> Tensor:
    """L of what student and teacher say of N images and the turned ones (M, ...); labels (N,)."""
    images = len(labels)
    own, known = (one[images:] for one in logits)
    turned = sskd_turned_loss(own, known, labels.repeat(len(own) // images))
    similarity = sskd_similarity_loss(*heads, images)
    return turned_weight * turned + similarity_weight * similarity


def _sources(scores: Tensor) -> Tensor:
    """Of which image each turned one is, (M - N,)."""
    turned, images = scores.shape
    return torch.arange(turned, device=scores.device) % images


def _selected(
    student: Tensor, teacher: Tensor, truth: Tensor, temperature: float, ratio: float
) -> Tensor:
    known = (teacher.detach() / temperature).softmax(1)
    own = (student / temperature).log_softmax(1)
    divergences = kl_div(own, known, reduction="none").sum(1)
    kept, count = _kept(known, truth, ratio)
    return temperature**2 * (divergences * kept).sum() / count.clamp(min=1)


@torch.no_grad()
def _kept(known: Tensor, truth: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Which rows (M,) of the teacher's answers (M, K) are kept, and how many."""
    answers = known.argsort(dim=1, descending=True, stable=True)
    ranks = (answers == truth[:, None]).long().argmax(1)
    wrong = (ranks > 0).sum()
    count = len(ranks) - wrong + (wrong.double() * ratio).floor().long()
    numbers = torch.arange(len(ranks), device=ranks.device)
    by_image = numbers.view(len(TURNS) - 1, -1).t().flatten()
    order = by_image[ranks[by_image].argsort(stable=True)]
    return order.argsort() < count, count


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSKD(Method):
    """A pretext task for the teacher's head, then its answers as targets."""

    views = TURNED_VIEWS
    batch_coupled = True
    reads_labels: ClassVar[bool] = True
    student_taps = ("logits", "pooled")
    teacher_taps = ("logits", "pooled")
    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd"), LossWeights(ce=0.1, kd=0.9, method=1)
    )

    def __init__(
        self,
        context: MethodContext,
        *,
        turned_weight: float = 2.7,
        similarity_weight: float = 10.0,
        turned_temperature: float = 4.0,
        similarity_temperature: float = 0.5,
        turned_ratio: float = 1.0,
        similarity_ratio: float = 0.75,
        head_epochs: int = 60,
        head_lr: float = 0.05,
    ) -> None:
        super().__init__(context)
        weights = (turned_weight, similarity_weight)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"weights are at least 0 and not both 0, got {weights}")
        for name, value in (
            ("turned_temperature", turned_temperature),
            ("similarity_temperature", similarity_temperature),
            ("head_lr", head_lr),
        ):
            if value <= 0:
                raise ValueError(f"{name} is above 0, got {value}")
        for name, value in (
            ("turned_ratio", turned_ratio),
            ("similarity_ratio", similarity_ratio),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {value}")
        if head_epochs < 0:
            raise ValueError(f"head_epochs is at least 0, got {head_epochs}")
        own, known = pooled_widths(context)
        self.turned_weight, self.similarity_weight = weights
        self.turned_temperature, self.turned_ratio = turned_temperature, turned_ratio
        self.similarity_temperature = similarity_temperature
        self.similarity_ratio = similarity_ratio
        self.head_epochs, self.head_lr = head_epochs, head_lr
        self.student_head = _head(own) if similarity_weight else None
        self.teacher_head = _head(known) if similarity_weight else None

    def phases(self) -> list[Phase]:
        """The training of the teacher's head."""
        head = self.teacher_head
        if head is None or not self.head_epochs:
            return []

        def loss(student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
            projected = head(of_all_turns(teachers[0], "pooled"))
            return {"head": sskd_head_loss(projected, len(batch.labels))}

        def schedule(share: float) -> float:
            return float(0.1 ** ((share >= 0.5) + (share >= 0.75)))

        parameters = [*head.parameters()]
        return [
            Phase(
                "head",
                self.head_epochs,
                parameters,
                loss,
                lr=self.head_lr,
                schedule=schedule,
                student="absent",
            )
        ]

    def extend(self, student: Taps) -> Taps:
        """Add `projected`, what the student's head makes of the pooled vectors."""
        if self.student_head is None:
            return student
        return Taps(student, projected=self.student_head(student.tensor("pooled")))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `turned` and `similarity`, without one of weight 0."""
        images, terms = len(batch.labels), dict[str, Tensor]()
        if self.turned_weight:
            own, known = (of_all_turns(v, "logits")[images:] for v in (student, teachers[0]))
            loss = sskd_turned_loss(
                own,
                known,
                batch.labels.repeat(len(TURNS) - 1),
                temperature=self.turned_temperature,
                ratio=self.turned_ratio,
            )
            terms["turned"] = self.turned_weight * loss
        if self.teacher_head is not None:
            with torch.no_grad():  # no term reaches the head, so the loop freezes it
                target = self.teacher_head(of_all_turns(teachers[0], "pooled"))
            loss = sskd_similarity_loss(
                of_all_turns(student, "projected"),
                target,
                images,
                temperature=self.similarity_temperature,
                ratio=self.similarity_ratio,
            )
            terms["similarity"] = self.similarity_weight * loss
        return terms

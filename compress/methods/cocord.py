"""CoCoRD: Contrastive Consistent Representation Distillation (Fu et al., BMVC 2023).

L = lambda_ctr L_ctr + lambda_pred (L_pred + L~_pred). Three views of each image are augmented
independently: x_s and x'_s for the student, x_t for the teacher. With g the networks up to their
pooled vectors and f projection heads (linear to 2048, batch norm, ReLU, linear to 2048):

* L_ctr = mean over the N images of -log(e^(q k / tau) / (e^(q k / tau) + sum_i e^(q k_i / tau))),
  with the query q = f_s(g_s(x_s)), the key k = f_t(g_t(x_t)) and the N_q latest keys k_i of
  earlier batches, a queue; all of length 1, keys constant.
* L_pred = mean of 2 - 2 cos(h(f_s(g_s(x_s))), f'_s(g'_s(x'_s))), L~_pred the same with x_s and x'_s
  exchanged, with a predictor h (linear to 512, batch norm, ReLU, linear to 2048). g'_s and f'_s are
  the slow-moving student: averages of the parameters of g_s and f_s, m_r of the old and 1 - m_r of
  the new after each step. Its targets are constant.

f_t begins as f_s and is its average likewise, with m_c; where the widths of the networks differ it
stays as it was drawn. (The released code copies f_s in any case, which fails where shapes differ;
for wrn_40_2 -> wrn_40_1 the paper has m_c = 1, which is that.) Averages are of parameters alone:
batch norms of the slow student and of f_t run on batches of their own, in training mode, as in the
released code (ShipengFu/CoCoRD). That moves the averages before it computes keys, which is after
the step before; the queue moves after the step, first in, first out, in any number of processes
and parts of a batch in the order of one process.

Taps: pooled vectors. CIFAR-100: tau 0.1, N_q 2048, m_c 0.999, m_r 0.9, lambda_ctr 1, lambda_pred 4,
CE 1. ImageNet: tau 0.07, N_q 65536 and no L~_pred (`symmetric: false`). KD beside it (CoCoRD + KD)
is ours in detail, since its weight is not printed and its code not released: on x_s, which the
teacher then sees too. Ablations: Table 5 by `contrastive` and `cognate`, which network gives the
keys and which the targets (option E is prediction_weight 0; F, which fails, contrastive: slow and
prediction_weight 0), Table 6 by the momenta, Table 7 by weights of 0, Figure 3 by tau and N_q.

Paper (Table 1, mean of 5): resnet32x4 -> resnet8x4 on CIFAR-100 75.29, with KD 75.28.
Measured here (benchmarks/results/contrast_cpu.md; resnet20 -> resnet8, 20 classes, 4 epochs, 3
seeds): 51.45, with KD 53.03; KD 43.35, CRD 36.13.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from compress.data.batch import Batch
from compress.methods.blocks.heads import two_layer_head
from compress.methods.blocks.key_queue import KeyQueue, info_nce
from compress.methods.blocks.momentum import move_average
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Needs,
    View,
    Views,
    pooled_widths,
    published,
)
from compress.precision import in_float32
from compress.taps import Tapped

Network = Literal["teacher", "slow"]


@in_float32
def cocord_prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """L_pred of h(q) (N, D) and constant targets (N, D): a scalar from 0 to 4."""
    return (2 - 2 * cosine_similarity(predictions, targets.detach())).mean()


@in_float32
def _unit(rows: Tensor) -> Tensor:
    return normalize(rows)


def cocord_loss(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    temperature: float = 0.1,
    prediction_weight: float = 4.0,
) -> Tensor:
    """L with lambda_ctr = 1, see the two terms; `predictions` and `targets`: of one or both."""
    pairs = zip(predictions, targets, strict=True)
    prediction = torch.stack([cocord_prediction_loss(*pair) for pair in pairs]).sum()
    contrast = info_nce(queries, keys, queue, temperature=temperature)
    return contrast + prediction_weight * prediction


class CoCoRD(Method):
    """A queue of the teacher's keys and a slow-moving student, see the module's docstring."""

    student_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float = 0.1,
        queue_size: int = 2048,
        projector_momentum: float = 0.999,
        student_momentum: float = 0.9,
        contrast_weight: float = 1.0,
        prediction_weight: float = 4.0,
        symmetric: bool = True,
        contrastive: Network = "teacher",
        cognate: Network = "slow",
        hidden_width: int = 2048,
        feature_width: int = 2048,
        predictor_width: int = 512,
    ) -> None:
        arguments = {
            "contrast_weight": contrast_weight,
            "prediction_weight": prediction_weight,
            "symmetric": symmetric,
            "contrastive": contrastive,
            "cognate": cognate,
        }
        super().__init__(context, self.needs(arguments))
        student_width, teacher_width = pooled_widths(context)
        momenta = {"projector_momentum": projector_momentum, "student_momentum": student_momentum}
        _refuse_impossible(arguments, momenta, temperature)
        self.temperature = temperature
        self.projector_momentum = projector_momentum
        self.student_momentum = student_momentum
        self.contrast_weight = contrast_weight
        self.prediction_weight = prediction_weight
        self.contrastive = contrastive
        self.cognate = cognate
        # (view that is predicted from, view of the target).
        self.pairs = _pairs(arguments) if prediction_weight else ()
        self.key_view = len(self.views) - 1
        self.projector = two_layer_head(student_width, hidden_width, feature_width)
        if prediction_weight:
            self.predictor = two_layer_head(feature_width, predictor_width, feature_width)
        if contrast_weight:
            self.queue = KeyQueue(queue_size, feature_width)
        if self.teacher_taps:
            self.teacher_projector = two_layer_head(teacher_width, hidden_width, feature_width)
            self.teacher_projector.requires_grad_(False)
            self.follows = student_width == teacher_width
            if self.follows:
                self.teacher_projector.load_state_dict(self.projector.state_dict())
        self.slow_views = _slow_views(self.pairs, cognate, self._slow_key)
        self._student: list[nn.Parameter] = []

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: x_s, and x'_s and x_t where their terms have weight."""
        given = cls.with_defaults(arguments)
        by_teacher = given["cognate"] == "teacher" and bool(given["prediction_weight"])
        both = bool(given["symmetric"])
        views = [View(teacher=by_teacher and both, soft=True)]
        if given["prediction_weight"]:
            views.append(View(student=both, teacher=by_teacher))
        if given["contrast_weight"]:
            views.append(View(student=False, teacher=given["contrastive"] == "teacher"))
        taps = ("pooled",) if any(view.teacher for view in views) else ()
        return Needs(tuple(views), False, taps, cls.protocols)

    def bind(self, student: Tapped) -> None:
        """Begin the slow student as a copy of the student and of its projector."""
        if not self.slow_views:
            return
        # A plain list: registered here, the student would be trained and saved twice.
        self._student = [*student.network.parameters()]
        self.slow = copy.deepcopy(student.network).requires_grad_(False)
        self.slow_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self._slow_tapped = student.with_network(self.slow)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Projections of the slow student, by the number of the view."""
        seen = ((view, self._slow_tapped(batch.images[view])) for view in self.slow_views)
        return {f"slow{view}": self.slow_projector(taps.tensor("pooled")) for view, taps in seen}

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `contrast` and `prediction`, without those of weight 0."""
        own = {
            i: self.projector(taps.tensor("pooled"))
            for i, taps in enumerate(student)
            if taps is not None
        }
        terms = {}
        if self.contrast_weight:
            keys = _unit(self._constant(self.contrastive, self.key_view, teachers, batch))
            contrast = info_nce(own[0], keys, self.queue.keys, temperature=self.temperature)
            terms["contrast"] = self.contrast_weight * contrast
            if self.training:
                self.queue.collect(keys, batch.rows)
        if self.prediction_weight:
            losses = []
            for view, other in self.pairs:
                target = self._constant(self.cognate, other, teachers, batch)
                losses.append(cocord_prediction_loss(self.predictor(own[view]), target))
            terms["prediction"] = self.prediction_weight * torch.stack(losses).sum()
        return terms

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages and the queue."""
        if self.slow_views:
            slow = [*self.slow.parameters(), *self.slow_projector.parameters()]
            move_average(
                slow, [*self._student, *self.projector.parameters()], self.student_momentum
            )
        if self.teacher_taps and self.follows:
            known, own = self.teacher_projector.parameters(), self.projector.parameters()
            move_average(known, own, self.projector_momentum)
        if self.contrast_weight:
            self.queue.write()

    def notes(self) -> list[str]:
        """The memory of the queue, and a teacher projector that does not learn."""
        notes = [self.queue.note()] if self.contrast_weight else []
        if self.teacher_taps and not self.follows:
            notes.append("the teacher's projector stays as it was drawn: the widths differ")
        return notes

    @property
    def _slow_key(self) -> int | None:
        return self.key_view if self.contrast_weight and self.contrastive == "slow" else None

    @torch.no_grad()
    def _constant(
        self, network: Network, view: int, teachers: Sequence[Views], batch: Batch
    ) -> Tensor:
        """The teacher's or the slow student's projection of a view."""
        if network == "slow":
            return batch.observed[f"slow{view}"]
        taps = teachers[0][view]
        assert taps is not None
        projected: Tensor = self.teacher_projector(taps.tensor("pooled"))
        return projected


def _pairs(arguments: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    return ((0, 1), (1, 0)) if arguments["symmetric"] else ((0, 1),)


def _slow_views(
    pairs: tuple[tuple[int, int], ...], cognate: Network, key: int | None
) -> tuple[int, ...]:
    """The views that the slow student sees, in the order of the released code."""
    targets = tuple(view for _, view in pairs) if cognate == "slow" else ()
    return targets if key is None else (*targets, key)


def _refuse_impossible(
    arguments: Mapping[str, Any], momenta: Mapping[str, float], temperature: float
) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, got {temperature}")
    for name, momentum in momenta.items():
        if not 0 <= momentum <= 1:
            raise ValueError(f"{name} is from 0 to 1, got {momentum}")
    for name in ("contrast_weight", "prediction_weight"):
        if arguments[name] < 0:
            raise ValueError(f"{name} is at least 0, got {arguments[name]}")
    if not arguments["contrast_weight"] + arguments["prediction_weight"]:
        raise ValueError("contrast_weight and prediction_weight are both 0: nothing is left")
    for name in ("contrastive", "cognate"):
        if arguments[name] not in ("teacher", "slow"):
            raise ValueError(f"{name} is teacher or slow, got {arguments[name]}")

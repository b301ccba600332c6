"""Methods that exist to prove the contract wide enough; they edit nothing outside this file."""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from compress.data import Batch
from compress.methods import LossWeights, Method, MethodContext, Phase, View, Views
from compress.methods.aekd_f import AEKDF
from compress.methods.ca_mkd import CAMKD
from compress.methods.contract import SoftLoss, last_map, last_maps, pooled, pooled_widths
from compress.methods.simkd import SimKD
from compress.precision import in_float32
from compress.taps import Tapped, Taps
from tests.methods import building


def _taps(views: Views, index: int) -> Taps:
    taps = views[index]
    assert taps is not None
    return taps


class ThreeViews(Method):
    """Student on view 0, its momentum copy on view 1, teacher on view 2; a phase for the head."""

    views = (
        View(teacher=False),
        View(student=False, teacher=False),
        View(augment="crop", student=False),
    )
    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=1),
        "simkd": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(self, context: MethodContext, *, width: int = 8, momentum: float = 0.9) -> None:
        super().__init__(context)
        self.head = nn.Linear(context.student.pooled_width, width)
        self.teacher_head = nn.Linear(context.teachers[0].taps.pooled_width, width)
        self.momentum = momentum
        self.register_buffer("queue", torch.zeros(16, width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("warmed", torch.zeros((), dtype=torch.long))

    def bind(self, student: Tapped) -> None:
        self._student = [student.network]
        self.slow = copy.deepcopy(student.network).requires_grad_(False)
        self._tapped_slow = [student.with_network(self.slow)]

    def phases(self) -> list[Phase]:
        def loss(student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
            target = _taps(teachers[0], 2).tensor("pooled")
            return {"warm": self.teacher_head(target.float()).square().mean()}

        head = list(self.teacher_head.parameters())
        return [Phase("warm-up", 1, head, loss, lr=0.01, after_step=self._count)]

    def _count(self) -> None:
        self.warmed += 1

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        return {"slow": self._tapped_slow[0](batch.images[1]).tensor("pooled")}

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        pooled, target = _taps(student, 0).tensor("pooled"), _taps(teachers[0], 2).tensor("pooled")
        slow = batch.observed["slow"]
        own = self.head(pooled).float()
        self._latest = own.detach()
        return {
            "agree": 1 - cosine_similarity(own, self.teacher_head(target).float()).mean(),
            "slow": (pooled.float() - slow.float()).square().mean(),
        }

    @torch.no_grad()
    def after_step(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self._student[0].parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
        rows = self._latest[: len(self.queue)]
        self.queue[: len(rows)] = rows
        self.steps += 1


@in_float32
def mean_square(difference: Tensor) -> Tensor:
    return difference.square().mean()


class TwoTeachers(Method):
    """Reads two teachers' logits and standardises logits in the soft loss (as LSKD does)."""

    student_taps = ("layer2",)
    teacher_taps = ("stages",)

    def __init__(self, context: MethodContext, *, first_share: float = 0.5) -> None:
        super().__init__(context)
        if len(context.teachers) != 2:
            raise ValueError(f"reads two teachers, got {len(context.teachers)}")
        self.first_share = first_share
        width = context.student.stages[1].channels
        self.adapters = nn.ModuleList(
            nn.Conv2d(width, t.taps.stages[1].channels, 1) for t in context.teachers
        )

    def soft_loss(self, student: Views, teachers: Sequence[Views], loss: SoftLoss) -> Tensor:
        @in_float32
        def standardised(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            first, second = (
                (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)
                for z in (student_logits, teacher_logits)
            )
            return loss(first, second)

        return super().soft_loss(student, teachers, standardised)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        own = _taps(student, 0).tensor("layer2")
        terms = {}
        shares = (self.first_share, 1 - self.first_share)
        for i, (adapter, share) in enumerate(zip(self.adapters, shares, strict=True)):
            stages = _taps(teachers[i], 0).tensors("stages")
            terms[f"teacher{i}"] = share * mean_square(adapter(own) - stages[1])
        return terms


class Masked(Method):
    """Hides random pixels of the student's last map (as MGD does) and draws noise for the rest."""

    student_taps = ("last_map",)
    teacher_taps = ("last_map",)

    def __init__(self, context: MethodContext, *, share: float = 0.5) -> None:
        super().__init__(context)
        own, known = last_maps(context)
        self.share = share
        self.adapter = nn.Conv2d(own.channels, known.channels, 1)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        own = last_map(student)
        kept = self.draw(batch, (1, *own.shape[2:])) >= self.share
        noise = self.draw(batch, own.shape[1:], key="noise", sample=torch.randn)
        recovered = self.adapter(own * kept + 0.1 * noise * ~kept)
        return {"masked": mean_square(recovered - last_map(teachers[0]))}


class Alternating(Method):
    """A term for even steps and another, with a head of its own, for odd ones."""

    student_taps = ("pooled",)
    teacher_taps = ("pooled",)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.even, self.odd = (nn.Linear(*pooled_widths(context)) for _ in range(2))

    def late_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.odd.parameters())

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        head = self.odd if batch.step % 2 else self.even
        return {"turns": mean_square(head(pooled(student)) - pooled(teachers[0]))}


class HintsAtOnce(AEKDF):
    """`aekd_f` whose second term does not wait."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, epochs_without_hint=0)


class SimKDOfTwo(SimKD):
    """`simkd` with a second teacher."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, combine="predictions")


class FeaturesAtOnce(CAMKD):
    """`ca_mkd` whose second term does not wait."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, epochs_without_features=0)


THROWAWAY = (Alternating, FeaturesAtOnce, HintsAtOnce, Masked, SimKDOfTwo, ThreeViews, TwoTeachers)


def teachers_needed(method: type[Method]) -> int:
    """How many teachers a method is built with."""
    return 2 if method in (TwoTeachers, SimKDOfTwo) else building.teachers_of(method)


__all__ = ["THROWAWAY", "Alternating", "Masked", "ThreeViews", "TwoTeachers", "teachers_needed"]

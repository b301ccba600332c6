"""DistPro: Searching a Fast Distillation Process via Meta Optimization (Deng et al.; ECCV 2022).

L = sum over paths p of w_p(e) HCL(C_p(S_p), T_p). A path leads from a student's map S before
activation to the teacher's T of the same or a finer stage: 6 of them for three stages. C_p is a
connector (3x3 convolution, batch norm, ReLU, attention of one channel, 3x3 convolution, batch norm,
ReLU, enlarged to T by the nearest pixels, 3x3 convolution, batch norm) with min(512, C_s, C_t)
channels inside, HCL the loss of ReviewKD (`blocks.feature_maps`). The process is one number a_p for
each path and epoch: w(e) = P softmax([a(e), 1]), without its last entry, for P paths.

The process is searched in a phase of `search_epochs` on a copy of the student, which is then left
behind, so that the student itself starts anew. There w = softmax(a), and a learns beside the copy:
of each batch the images of the held-out share of the training set are what the copy is judged by
and the others what it learns from; a descends the copy's cross entropy on the former after one step
of SGD on the latter. As in DARTS (Liu et al.; ICLR 2019) the derivative is a finite difference:
-lr / 2R times the change of the paths' losses between weights v + R g and v - R g, g the gradient
of the held-out cross entropy after the step, R = 0.01 / |g|; a then moves by Adam (0.1, betas 0.5
and 0.999). A step of the search costs about four others. In the main training a(e) is read between
the epochs of the search, stretched to its own. `process` gives it instead (a row for each epoch of
a search, a number for each path, those of the finest teacher stage first), and with neither
(`search_epochs: 0`) every w is 1, the release's baseline.

Taps: maps before activation, and labels. The numbers are those of bytedance/DistPro, whose scripts
train by batches of 128 with a learning rate of 0.1. It releases the search alone, with its flag for
the second training wired wrongly: reading the process back is written here from the paper. Other
differences: the release taps the stem, too (10 paths); its step of SGD has the momentum and weight
decay of the training, here it is plain, with `unroll_lr`; it shows further held-out images beside
each batch, here a batch has both; a moves before the weights do there and with them here.

Paper (DCD supplement, Table 7): resnet56 -> resnet20 on CIFAR-100 72.03, none for resnet8x4.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import hierarchical_context_loss, stage_pairs
from compress.methods.blocks.heads import label_loss
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    OwnOptimizer,
    ParameterGroup,
    Phase,
    Views,
    logits_of,
    pre_activations,
    published,
)
from compress.precision import in_float32
from compress.seeding import seed_for
from compress.taps import MapSpec, Tapped

_WIDEST = 512
_NUDGE = 1e-2  # length of R g
_TINY = 1e-12


@in_float32
def distpro_loss(
    connected: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """L of the paths.

    Args:
        connected: C_p(S_p), (N, C, H, W) each.
        teacher: T_p, shaped as the connected.
        weights: w, (P,), by default all 1.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the images.
    """
    pairs = zip(connected, teacher, strict=True)
    losses = torch.stack([hierarchical_context_loss(own, known) for own, known in pairs])
    return losses.sum() if weights is None else (weights * losses).sum()


class _Connector(nn.Module):
    """A student's map as the teacher's: (N, C_s, h, w) -> (N, C_t, H, W)."""

    def __init__(self, student: MapSpec, teacher: MapSpec) -> None:
        super().__init__()
        inner = min(_WIDEST, student.channels, teacher.channels)
        self.first = _convolution(student.channels, inner)
        self.attention = nn.Conv2d(inner, 1, 1, bias=False)
        self.second = _convolution(inner, inner)
        self.last = _convolution(inner, teacher.channels)
        nn.init.normal_(self.attention.weight, std=math.sqrt(2))

    def forward(self, student_map: Tensor, size: tuple[int, int]) -> Tensor:
        """Connect, to a height and width."""
        own = self.first(student_map).relu()
        own = self.second(own * self.attention(own)).relu()
        if own.shape[-2:] != size:
            own = interpolate(own, size, mode="nearest")
        connected: Tensor = self.last(own)
        return connected


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * channels_out)))
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class Paths(nn.Module):
    """The connectors of all paths; `places` are the numbers of their stages, teacher's first."""

    def __init__(self, student: Sequence[MapSpec], teacher: Sequence[MapSpec]) -> None:
        super().__init__()
        stages = range(min(len(student), len(teacher)))
        self.places = [(t, s) for t in stages for s in stages if s >= t]
        self.connectors = nn.ModuleList(_Connector(student[s], teacher[t]) for t, s in self.places)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """C_p(S_p) and T_p of every path."""
        known = [teacher[t] for t, _ in self.places]
        own = [student[s] for _, s in self.places]
        paths = zip(self.connectors, own, known, strict=True)
        return [c(s, (t.shape[-2], t.shape[-1])) for c, s, t in paths], known


class _Searched(nn.Module):
    """A copy of the student and paths of its own."""

    def __init__(self, student: Tapped, paths: Paths) -> None:
        super().__init__()
        self.network = copy.deepcopy(student.network).requires_grad_()
        self.paths = copy.deepcopy(paths)
        self._tapped = [student.with_network(self.network)]  # no module

    def show(self, images: Tensor, known: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, K), and the loss of each path (P,) against the teacher's maps."""
        taps = self._tapped[0](images)
        connected, targets = self.paths(taps.tensors("pre_activations"), known)
        pairs = zip(connected, targets, strict=True)
        return logits_of(taps), torch.stack([hierarchical_context_loss(*pair) for pair in pairs])

    def judge(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        return logits_of(self._tapped[0](images))


class DistPro(Method):
    """Paths between stages, weighted by a process that is searched or given."""

    reads_labels: ClassVar[bool] = True
    reads_index: ClassVar[bool] = True
    student_taps = ("pre_activations", "logits")
    teacher_taps = ("pre_activations",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)
    process: Tensor
    is_held_out: Tensor

    def __init__(
        self,
        context: MethodContext,
        *,
        search_epochs: int = 40,
        process: list[list[float]] | None = None,
        held_out: float = 0.2,
        process_lr: float = 0.1,
        unroll_lr: float = 0.1,
    ) -> None:
        super().__init__(context)
        stage_pairs(context)  # refuses networks without maps
        self.paths = Paths(
            context.student.pre_activations, context.teachers[0].taps.pre_activations
        )
        count = len(self.paths.places)
        _refuse_impossible(search_epochs, process, count)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share above 0 and below 1, got {held_out}")
        for name, lr in (("process_lr", process_lr), ("unroll_lr", unroll_lr)):
            if lr <= 0:
                raise ValueError(f"{name} is above 0, got {lr}")
        self.search_epochs = 0 if process is not None else search_epochs
        self.held_out, self.process_lr, self.unroll_lr = held_out, process_lr, unroll_lr
        rows = torch.ones(search_epochs, count) if process is None else torch.tensor(process)
        self.register_buffer("process", rows)
        draw = torch.Generator().manual_seed(seed_for("distpro", context.train_size))
        order = torch.rand(context.train_size, generator=draw)
        self.register_buffer("is_held_out", order < held_out, persistent=False)
        self._epoch = 0

    def bind(self, student: Tapped) -> None:
        """Copy the student for the search."""
        if self.search_epochs:
            self.alpha = nn.Parameter(torch.ones(len(self.paths.places)))
            self.searched = _Searched(student, self.paths)
            self._unrolled = [_Searched(student, self.paths)]  # no module: it is no state

    def phases(self) -> list[Phase]:
        """The search, unless the process is given."""
        if not self.search_epochs:
            return []
        learning = [*self.searched.parameters(), self.alpha]
        return [
            Phase(
                "search",
                self.search_epochs,
                learning,
                self._search,
                schedule="recipe",
                student="absent",
                after_step=self._record,
            )
        ]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The process has an Adam of its own."""
        if not self.search_epochs:
            return []
        adam = OwnOptimizer("adam", self.process_lr, betas=(0.5, 0.999), scheduled=False)
        return [ParameterGroup([self.alpha], optimizer=adam)]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `distpro`."""
        connected, targets = self.paths(pre_activations(student), pre_activations(teachers[0]))
        return {"distpro": distpro_loss(connected, targets, self.weights(batch.epoch))}

    def weights(self, epoch: int) -> Tensor | None:
        """w (P,) of an epoch of the main training; None where every one is 1."""
        if not len(self.process):
            return None
        place = (len(self.process) - 1) * min(1, epoch / max(1, self.context.epochs - 1))
        first = int(place)
        after = min(first + 1, len(self.process) - 1)
        alpha = torch.lerp(self.process[first], self.process[after], place - first)
        return len(alpha) * torch.cat([alpha, alpha.new_ones(1)]).softmax(0)[:-1]

    def notes(self) -> list[str]:
        """The size of the search."""
        if not self.search_epochs:
            return []
        held_out = int(self.is_held_out.sum())
        return [
            f"searches weights of {len(self.paths.places)} paths for {self.search_epochs} epochs "
            f"on a copy of the student, judged by {held_out:,} of the training images"
        ]

    def _search(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms of the copy, and one whose gradient is that of the process and whose value 0.

        A step of the search waits for the device: how many of a batch's images are held out is
        known there.
        """
        self._epoch = batch.epoch
        images, is_judge = batch.images[0], self.is_held_out[batch.index]
        judges, own = images[is_judge], images[~is_judge]
        labels = batch.labels[~is_judge], batch.labels[is_judge]
        if not len(own):
            zero = sum(p.sum() * 0 for p in [*self.searched.parameters(), self.alpha])
            return {"search": zero}  # type: ignore[dict-item]
        known = [maps[~is_judge] for maps in pre_activations(teachers[0])]
        logits, losses = self.searched.show(own, known)
        usual = len(own) / len(images) / (1 - self.held_out)  # so that parts of a step add up
        hard = label_loss(logits, labels[0])
        paths = (self.alpha.detach().softmax(0) * losses).sum()
        slope = torch.zeros_like(self.alpha)
        if len(judges):
            slope = self._slope(own, labels[0], known, judges, labels[1])
        process = (self.alpha * slope).sum()
        return {"ce": usual * hard, "paths": usual * paths, "process": process - process.detach()}

    def _slope(
        self, own: Tensor, labels: Tensor, known: Sequence[Tensor], judges: Tensor, truth: Tensor
    ) -> Tensor:
        """The derivative (P,) of the held-out cross entropy after a step by the process."""
        (unrolled,) = self._unrolled
        unrolled.to(own.device).train(self.searched.training)
        alpha = self.alpha.detach().requires_grad_()
        with torch.enable_grad():
            self._move_unrolled()
            logits, losses = unrolled.show(own, known)
            weighted = (alpha.detach().softmax(0) * losses).sum()
            step = _gradients(label_loss(logits, labels) + weighted, unrolled)
            self._move_unrolled(step, -self.unroll_lr)
            direction = _gradients(label_loss(unrolled.judge(judges), truth), unrolled)
        length = torch.stack([g.square().sum() for g in direction]).sum().sqrt()
        radius = _NUDGE / length.clamp(min=_TINY)
        ends = []
        with torch.no_grad():
            for share in (radius, -radius):
                self._move_unrolled(direction, share)
                ends.append(unrolled.show(own, known)[1])
        with torch.enable_grad():
            change = (alpha.softmax(0) * (ends[0] - ends[1])).sum()
        (slope,) = torch.autograd.grad(change, alpha)
        return -self.unroll_lr * slope / (2 * radius)

    @torch.no_grad()
    def _move_unrolled(self, direction: Sequence[Tensor] = (), share: Tensor | float = 0) -> None:
        """Set the unrolled copy to the searched one, and its parameters share x direction off."""
        (unrolled,) = self._unrolled
        unrolled.load_state_dict(self.searched.state_dict())
        for parameter, change in zip(unrolled.parameters(), direction, strict=False):
            parameter.add_(share * change)

    @torch.no_grad()
    def _record(self) -> None:
        self.process[self._epoch] = self.alpha


def _gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    """The gradient of each of a module's parameters, 0 where the loss does not reach it."""
    parameters = [*module.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]


def _refuse_impossible(
    search_epochs: int, process: Sequence[Sequence[float]] | None, count: int
) -> None:
    if search_epochs < 0:
        raise ValueError(f"search_epochs is at least 0, got {search_epochs}")
    if process is None:
        return
    widths = {len(row) for row in process}
    if widths != {count}:
        raise ValueError(
            f"process has a row for each epoch and {count} numbers in it, one for each path; got "
            f"{len(process)} rows of {', '.join(map(str, sorted(widths))) or 'no'} numbers"
        )

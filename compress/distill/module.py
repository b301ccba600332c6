"""Student, teachers and a method as the one module that the loop trains."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.distill.gathering import gather_rows
from compress.distributed.collectives import world_size
from compress.errors import UserError
from compress.methods.contract import (
    LossWeights,
    Method,
    NetworkForward,
    ParameterGroup,
    Phase,
    StoredOutputs,
    TeacherContext,
    TeacherForward,
    Views,
    first,
    joined_views,
)
from compress.methods.kd import kd_loss
from compress.models.forward import CHANGES_ITS_INPUT
from compress.taps import Tapped, TappedForward, Taps
from compress.tasks import Task


class Distillation(nn.Module):
    """Returns the weighted terms of a batch; its state is the student's and the method's alone."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        method: Method,
        weights: LossWeights,
        task: Task,
        *,
        kd_temperature: float,
        inputs: Sequence[Callable[[Tensor], Tensor] | None] = (),
        auxiliary: nn.Module | None = None,
    ) -> None:
        """Combine the parts.

        Args:
            student: the network that `method.context.student` describes.
            teachers: those of `method.context.teachers`; put in eval mode and frozen. They are no
                part of this module's state.
            inputs: per teacher, what makes its images of the student's (None: it reads the same).
            auxiliary: a head that learns beside the student from hard labels, see `Task.auxiliary`;
                used where their weight is not 0.
            kd_temperature: T of the `soft` term that stands beside a method's own.
        """
        super().__init__()
        context = method.context
        self.student = student
        self.method = method
        self.weights = weights
        self.task = task
        self.kd_temperature = kd_temperature
        self.auxiliary = auxiliary if weights.ce else None
        self._tapped = Tapped(student, context.student, self.student_taps)
        self._teachers = [
            _tapped(teacher.eval().requires_grad_(False), known, method.teacher_taps)
            for teacher, known in zip(teachers, context.teachers, strict=True)
        ]
        self._inputs = inputs or [None] * len(self._teachers)
        self._phase: Phase | None = None
        self._student: TappedForward = self._tapped
        self._fast_teachers: Sequence[TeacherForward] = ()
        method.bind(self._tapped)
        self._trainable = [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars whose sum is the loss; a term of weight 0 is not computed.

        Of a part of a batch they are means over its own images, but the terms of a coupled method
        that gathers rows are those of the whole step's batch, whose rows all processes exchange.
        """
        student: Views = [None] * len(batch.images)
        if self._phase is None or self._phase.student != "absent":
            student = self._student_views(batch)
        teachers = self._teacher_views(batch) if self.teacher_taps(self._phase) else []
        if self._phase is not None:
            return dict(self._phase.loss(student, teachers, batch))
        weights, method, terms = self.weights, self.method, dict[str, Tensor]()
        if weights.ce:
            terms["ce"] = weights.ce * method.hard_loss(student, batch, self.task.loss_of(batch))
        if self.auxiliary is not None:
            beside = self.task.auxiliary_loss(self.auxiliary, first(student), batch)
            terms["auxiliary"] = weights.ce * beside
        if weights.kd:
            terms["soft"] = weights.kd * method.soft_loss(student, teachers, self._soft)
        if weights.method:
            batch = self._observed(batch)
            if method.batch_coupled and method.gathers_rows and world_size() > 1:
                student, teachers, batch = gather_rows(student, teachers, batch)
            own = method(student, teachers, batch)
            terms |= {name: weights.method * value for name, value in own.items()}
        return terms

    def teacher_taps(self, phase: Phase | None) -> tuple[str, ...]:
        """Taps of teachers that the terms of a phase read, or those of the main training (None)."""
        own = phase.reads_teachers if phase is not None else self.weights.method != 0
        wanted = list(self.method.teacher_taps) if own else []
        if phase is None and self.weights.kd:
            wanted.append("logits")
        return tuple(dict.fromkeys(wanted))

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Taps of the student that any term reads."""
        beside = ["auxiliary"] if self.auxiliary is not None else []
        output = self.method.context.student.output
        return tuple(dict.fromkeys((*self.method.student_taps, *beside, output)))

    def begin_phase(
        self,
        phase: Phase | None,
        probe: Batch,
        *,
        student: TappedForward | None = None,
        teachers: Sequence[TeacherForward] = (),
    ) -> None:
        """Prepare for a phase or, with None, for the main training.

        Afterwards exactly the parameters that learn have `requires_grad`: those that a term
        reaches, in a phase those of its own, found by one backward pass on `probe` that leaves
        every state as it was, and the method's `late_parameters`.

        Args:
            phase: one of the method's.
            probe: a batch as those of the phase.
            student: the student made faster, with `student_taps`; by default the network itself.
            teachers: one per teacher, each with `teacher_taps(phase)`; by default the networks.
        """
        self._phase, self._student, self._fast_teachers = phase, student or self._tapped, teachers
        named = {id(p) for p in (self._trainable if phase is None else phase.parameters)}
        own = [p for p in self._trainable if id(p) in named]  # what was frozen stays frozen
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        for parameter in own:
            parameter.requires_grad_(True)
        with self.rehearsal():
            self.backward(probe)
            late = {id(p) for p in self.method.late_parameters()}
            learning = [p for p in own if p.grad is not None or id(p) in late]
        for parameter in own:
            parameter.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """See `Method.parameter_groups`."""
        return self.method.parameter_groups()

    def train(self, mode: bool = True) -> "Distillation":
        """Training mode, or eval mode; a student that a phase freezes stays in eval mode."""
        super().train(mode)
        if self._freezes_student:
            self.student.eval()
        return self

    def after_step(self) -> None:
        """Let the method, or the phase, move its banks and averages."""
        move = self.method.after_step if self._phase is None else self._phase.after_step
        if move is not None:
            move()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Training mode with the networks themselves, eager and uncached; no step is taken.

        Afterwards state, mode and networks are as they were, and there are no gradients.
        """
        before = {name: value.clone() for name, value in self.state_dict().items()}
        training, student, teachers = self.training, self._student, self._fast_teachers
        self._student, self._fast_teachers = self._tapped, ()
        self.train()
        try:
            yield
        finally:
            self.zero_grad(set_to_none=True)
            self.load_state_dict(before)
            self.train(training)
            self._student, self._fast_teachers = student, teachers

    def backward(self, batch: Batch) -> None:
        """Forward and backward of a batch, as a step of the loop has them."""
        loss = torch.stack([*self(batch).values()]).sum()
        with torch.autocast(loss.device.type, enabled=False):  # as the loop has it
            loss.backward()  # type: ignore[no-untyped-call]

    def measure(self, batch: Batch) -> dict[str, float | None]:
        """Measure the method's own terms on a batch, and how hard they pull at the student.

        Returns:
            `term`: their unweighted sum. `gradient_to_ce`: the norm of their gradient on the
            student's parameters, times the method's weight (1 where that is 0), divided by that of
            the cross entropy; left out where the task has no labels. None where that is no finite
            number. Empty for a method without terms. Every state is left as it was, gradients are
            cleared.
        """
        if type(self.method).forward is Method.forward:
            return {}
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        with self.rehearsal(), torch.enable_grad():
            student, teachers = self._student_views(batch), self._teacher_views(batch)
            terms = self.method(student, teachers, self._observed(batch))
            own = torch.stack([*terms.values()]).sum()
            values = {"term": float(own.detach())}
            if self.task.has_classes:
                hard = self.method.hard_loss(student, batch, self.task.loss_of(batch))
                norms = [_gradient_norm(term, parameters) for term in (own, hard)]
                ratio = (self.weights.method or 1) * norms[0] / norms[1]
                values["gradient_to_ce"] = float(ratio)
        return {key: value if math.isfinite(value) else None for key, value in values.items()}

    def resident_tensors(self, batch: Batch) -> list[Tensor]:
        """Tensors that are there before a step: parameters, buffers, teachers and the batch."""
        networks = [t.network if isinstance(t, Tapped) else t for t in self._teachers]
        teachers = [tensor for network in networks for tensor in _tensors(network)]
        own = [*batch.images, *batch.view_ids, *batch.view_numbers, batch.labels, batch.index]
        return [*_tensors(self), *teachers, *own]

    @property
    def knows_images(self) -> bool:
        """Whether a term is of the very images trained on: the method's, or stored targets."""
        stored = any(isinstance(teacher, StoredOutputs) for teacher in self._teachers)
        return stored or self.method.knows_images

    def method_bytes(self) -> int:
        """Bytes of what the method adds to the student: its own parameters and buffers."""
        return sum(tensor.nbytes for tensor in _tensors(self.method))

    @property
    def _freezes_student(self) -> bool:
        return self._phase is not None and self._phase.student == "frozen"

    def _student_views(self, batch: Batch) -> Views:
        student = self._frozen_student if self._freezes_student else self._learning_student
        views: list[Taps | None] = [None] * len(self.method.views)
        for numbers in joined_views(self.method.views):
            parts = _split(student(batch, numbers), len(numbers))
            for number, part in zip(numbers, parts, strict=True):
                views[number] = part
        return views

    def _learning_student(self, batch: Batch, views: Sequence[int]) -> Taps:
        return self.method.extend(self._run_student(batch, views))

    @torch.no_grad()
    def _frozen_student(self, batch: Batch, views: Sequence[int]) -> Taps:
        return self._run_student(batch, views)

    def _run_student(self, batch: Batch, views: Sequence[int]) -> Taps:
        """Run the student once on the images of these views, view after view."""
        if len(views) > 1:
            return self._student(torch.cat([batch.images[view] for view in views]))
        return _unchanged(NetworkForward(self._student), batch, views[0], "student")

    @torch.no_grad()
    def _observed(self, batch: Batch) -> Batch:
        return replace(batch, observed=self.method.observe(batch))

    @torch.no_grad()
    def _teacher_views(self, batch: Batch) -> list[Views]:
        own = zip(self._teachers, self._inputs, strict=True)
        teachers = self._fast_teachers or [
            NetworkForward(teacher, convert) if isinstance(teacher, Tapped) else teacher
            for teacher, convert in own
        ]
        views = [(i, v.is_for_teacher(self.weights)) for i, v in enumerate(self.method.views)]
        # Its arithmetic is its own: what autocast does to the student is not done to its targets.
        with torch.autocast(batch.index.device.type, enabled=False):
            return [
                [_unchanged(t, batch, i, "teacher") if is_shown else None for i, is_shown in views]
                for t in teachers
            ]

    def _soft(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd_loss(student_logits, teacher_logits, self.kd_temperature)


def _tapped(
    teacher: nn.Module, known: TeacherContext, wanted: Sequence[str]
) -> Tapped | StoredOutputs:
    """A network with its taps; stored outputs as they are."""
    if isinstance(teacher, StoredOutputs):
        return teacher
    return Tapped(teacher, known.taps, (*wanted, known.taps.output))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _split(taps: Taps, views: int) -> list[Taps]:
    """The taps of each of so many views that ran in one batch."""
    if views == 1:
        return [taps]
    parts = [Taps() for _ in range(views)]
    for kind, tap in taps.items():
        rows = [t.chunk(views) for t in (tap if isinstance(tap, list) else [tap])]
        for number, part in enumerate(parts):
            own = [chunks[number] for chunks in rows]
            part[kind] = own if isinstance(tap, list) else own[0]
    return parts


def _unchanged(forward: TeacherForward, batch: Batch, view: int, role: str) -> Taps:
    """Taps of a view whose images the network must not overwrite: others read them too."""
    before = batch.images[view]._version
    taps = forward(batch, view)
    if batch.images[view]._version != before:
        raise UserError(f"the {role} {CHANGES_ITS_INPUT}")
    return taps


def _gradient_norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [g.float().norm() for g in gradients if g is not None]
    total: Tensor = torch.stack([term.new_zeros((), dtype=torch.float32), *norms]).norm()
    return total

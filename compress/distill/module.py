"""Student, frozen teachers and a method as the one module that the loop trains."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.accounting.memory import peak_step_bytes
from compress.data.batch import Batch
from compress.distributed.collectives import gathered, gathered_with_gradient, sorted_by, world
from compress.errors import UserError
from compress.methods.contract import Method, Phase, TeacherContext, Terms, Views
from compress.methods.kd import kd_loss
from compress.models.forward import CHANGES_ITS_INPUT
from compress.taps import Tapped, Taps, TapSpecs
from compress.tasks import Classification

# What a teacher shows of a batch's view, by the view's number.
Source = Callable[[Batch, int], Taps]


class Distillation(nn.Module):
    """Returns the weighted terms of a batch; its state is the student's and the method's alone."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        method: Method,
        weights: Terms,
        task: Classification,
        *,
        kd_temperature: float,
    ) -> None:
        """Combine the parts.

        Args:
            student: the network that `method.context.student` describes.
            teachers: those of `method.context.teachers`; put in eval mode and frozen. They are no
                part of this module's state.
            kd_temperature: T of the `soft` term that stands beside a method's own.
        """
        super().__init__()
        context = method.context
        self.student = student
        self.method = method
        self.weights = weights
        self.task = task
        self.kd_temperature = kd_temperature
        self._tapped = Tapped(student, context.student, method.student_taps)
        self._teachers = [
            Tapped(teacher.eval().requires_grad_(False), known.taps, method.teacher_taps)
            for teacher, known in zip(teachers, context.teachers, strict=True)
        ]
        self._sources: list[Source] = []
        self._look: Callable[[Tensor], Taps] = self._tapped
        self._phase: Phase | None = None
        method.bind(self._tapped)
        self._trainable = [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars whose sum is the loss; a term of weight 0 is not computed.

        Of a part of a batch they are means over its own images, but the terms of a coupled method
        are those of the whole step's batch, whose rows all processes exchange.
        """
        student: Views = [None] * len(batch.images)
        if self._phase is None or self._phase.reads_student:
            student = self._student_views(self._look, batch)
        teachers = self._teacher_views(batch) if self.teacher_taps else []
        if self._phase is not None:
            return dict(self._phase.loss(student, teachers, batch))
        weights, method, terms = self.weights, self.method, dict[str, Tensor]()
        if weights.ce:
            terms["ce"] = weights.ce * method.hard_loss(student, batch, self.task.loss)
        if weights.kd:
            terms["soft"] = weights.kd * method.soft_loss(student, teachers, self._soft)
        if weights.method:
            if method.batch_coupled and world() > 1:
                student, teachers, batch = _of_all(student, teachers, batch)
            own = method(student, teachers, batch)
            terms |= {name: weights.method * value for name, value in own.items()}
        return terms

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """What the terms of the phase, or of the main training, read of teachers; maybe nothing."""
        own = self._phase is not None or self.weights.method != 0
        wanted = list(self.method.teacher_taps) if own else []
        if self._phase is None and self.weights.kd:
            wanted.append("logits")
        return tuple(dict.fromkeys(wanted))

    @property
    def student_taps(self) -> tuple[str, ...]:
        """What is read of the student."""
        return tuple(dict.fromkeys((*self.method.student_taps, "logits")))

    def learn_from(self, sources: Sequence[Source]) -> None:
        """Let these show `teacher_taps` in place of the networks themselves, one per teacher."""
        self._sources = list(sources)

    def look_with(self, look: Callable[[Tensor], Taps]) -> None:
        """Let this show the student's taps: the same network, made faster."""
        self._look = look

    def after_step(self) -> None:
        """Let the method, or the phase, move its banks and averages."""
        move = self.method.after_step if self._phase is None else self._phase.after_step
        if move is not None:
            move()

    def enter(self, phase: Phase | None, batch: Batch) -> None:
        """Prepare for a phase or, with None, for the main training.

        Afterwards exactly the parameters that learn have `requires_grad`: those that a term
        reaches, in a phase those of its own, found by one backward pass on `batch` that leaves
        every state as it was, and the method's `late_parameters`.
        """
        self._phase = phase
        self._sources = []
        named = {id(p) for p in (self._trainable if phase is None else phase.parameters)}
        own = [p for p in self._trainable if id(p) in named]  # what was frozen stays frozen
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        for parameter in own:
            parameter.requires_grad_(True)
        with self._as_it_was():
            terms = self(batch)
            torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
            late = {id(p) for p in self.method.late_parameters()}
            learning = [p for p in own if p.grad is not None or id(p) in late]
        for parameter in own:
            parameter.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)

    def measure(self, batch: Batch) -> dict[str, float | None]:
        """What the method's own terms are on a batch, and how hard they pull at the student.

        Returns:
            `term`: their unweighted sum. `gradient_to_ce`: the norm of their gradient on the
            student's parameters, times the method's weight (1 where that is 0), divided by that of
            the cross entropy. None where that is no finite number. Empty for a method without
            terms. Every state is left as it was, gradients are cleared.
        """
        if type(self.method).forward is Method.forward:
            return {}
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        with self._as_it_was(), torch.enable_grad():
            student = self._student_views(self._tapped, batch)
            teachers = self._teacher_views(batch, plain=True)
            own = torch.stack([*self.method(student, teachers, batch).values()]).sum()
            hard = self.method.hard_loss(student, batch, self.task.loss)
            norms = [_gradient_norm(term, parameters) for term in (own, hard)]
        ratio = (self.weights.method or 1) * norms[0] / norms[1]
        found = {"term": float(own.detach()), "gradient_to_ce": float(ratio)}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def peak_bytes(self, batch: Batch) -> int:
        """Most bytes of tensors alive at once in forward and backward of a batch.

        Parameters, buffers and the batch are not counted. It is that of the plain networks, eager
        and not cached, whatever shows the taps. Every state is left as it was.
        """
        frozen = [t for one in self._teachers for t in _tensors(one.network)]
        outside = [*_tensors(self), *frozen, *batch.images, *batch.view_ids, *batch.slots]
        look, sources = self._look, self._sources
        self._look, self._sources = self._tapped, []

        def step() -> None:
            loss = torch.stack([*self(batch).values()]).sum()
            with torch.autocast(loss.device.type, enabled=False):  # as the loop has it
                loss.backward()  # type: ignore[no-untyped-call]

        try:
            with self._as_it_was():
                return peak_step_bytes(step, [*outside, batch.labels, batch.index])
        finally:
            self._look, self._sources = look, sources

    def method_bytes(self) -> int:
        """Bytes of what the method adds to the student: its own parameters and buffers."""
        return sum(tensor.nbytes for tensor in _tensors(self.method))

    def _student_views(self, look: Callable[[Tensor], Taps], batch: Batch) -> Views:
        source = _source_of(look)
        return [
            self.method.extend(_shown(source, batch, i, "student")) if view.student else None
            for i, view in enumerate(self.method.views)
        ]

    @torch.no_grad()
    def _teacher_views(self, batch: Batch, *, plain: bool = False) -> list[Views]:
        sources = [] if plain else self._sources
        if not sources:
            sources = [_source_of(teacher) for teacher in self._teachers]
        views = list(enumerate(self.method.views))
        # Its arithmetic is its own: what autocast does to the student is not done to its targets.
        with torch.autocast(batch.index.device.type, enabled=False):
            return [
                [_shown(src, batch, i, "teacher") if view.teacher else None for i, view in views]
                for src in sources
            ]

    def _soft(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd_loss(student_logits, teacher_logits, self.kd_temperature)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Training mode inside; afterwards state and mode as they were, and no gradients."""
        before = {name: value.clone() for name, value in self.state_dict().items()}
        training = self.training
        self.train()
        try:
            yield
        finally:
            self.zero_grad(set_to_none=True)
            self.load_state_dict(before)
            self.train(training)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _shown(source: Source, batch: Batch, view: int, role: str) -> Taps:
    before = batch.images[view]._version
    taps = source(batch, view)
    if batch.images[view]._version != before:
        raise UserError(f"the {role} {CHANGES_ITS_INPUT}")
    return taps


def _source_of(look: Callable[[Tensor], Taps]) -> Source:
    return lambda batch, view: look(batch.images[view])


def _of_all(
    student: Views, teachers: Sequence[Views], batch: Batch
) -> tuple[Views, list[Views], Batch]:
    """What a coupled method reads, with the rows of all processes in the order of one process.

    Every process then has the same terms; the student's own rows get the gradient of them all.
    """
    numbers = gathered(batch.rows)
    in_order = sorted_by(numbers)

    def constant(rows: Tensor) -> Tensor:
        return in_order(gathered(rows))

    def learned(rows: Tensor) -> Tensor:
        return in_order(gathered_with_gradient(rows))

    def views(taps: Views, gather: Callable[[Tensor], Tensor]) -> Views:
        return [one.map(gather) if one is not None else None for one in taps]

    whole = replace(
        batch,
        images=(),
        view_ids=tuple(map(constant, batch.view_ids)),
        slots=tuple(map(constant, batch.slots)),
        labels=constant(batch.labels),
        index=constant(batch.index),
        start=int(numbers.min()),
    )
    return views(student, learned), [views(teacher, constant) for teacher in teachers], whole


def _gradient_norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [g.float().norm() for g in found if g is not None]
    total: Tensor = torch.stack([term.new_zeros((), dtype=torch.float32), *norms]).norm()
    return total


def teacher_context(network: nn.Module, specs: TapSpecs) -> TeacherContext:
    """A teacher's taps and a copy of its linear classifier (if it has one), on the CPU."""
    if specs.classifier is None:
        return TeacherContext(specs, None, None)
    state = network.get_submodule(specs.classifier).state_dict()
    bias = state["bias"].cpu().clone() if "bias" in state else None
    return TeacherContext(specs, state["weight"].cpu().clone(), bias)

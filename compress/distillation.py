"""Student, frozen teachers and a method as the one module that the loop trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.data.batches import Batch
from compress.methods.base import Method, Phase, TeacherContext, Terms, Views
from compress.methods.kd import kd_loss
from compress.taps import Tapped, TapSpecs
from compress.tasks import Classification


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
        self._phase: Phase | None = None
        method.bind(self._tapped)
        self._trainable = [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars whose sum is the loss; a term of weight 0 is not computed."""
        reads_student = self._phase is None or self._phase.reads_student
        student: Views = [
            self._tapped(images) if view.student and reads_student else None
            for view, images in zip(self.method.views, batch.images, strict=True)
        ]
        teachers: list[Views] = []
        if self._reads_teachers():
            with torch.no_grad():
                teachers = [self._show(teacher, batch) for teacher in self._teachers]
        if self._phase is not None:
            return dict(self._phase.loss(student, teachers, batch))
        weights, method, terms = self.weights, self.method, dict[str, Tensor]()
        if weights.ce:
            terms["ce"] = weights.ce * method.hard_loss(student, batch, self.task.loss)
        if weights.kd:
            terms["soft"] = weights.kd * method.soft_loss(student, teachers, self._soft)
        if weights.method:
            own = method(student, teachers, batch)
            terms |= {name: weights.method * value for name, value in own.items()}
        return terms

    def after_step(self) -> None:
        """Let the method move its banks and averages."""
        if self._phase is None:
            self.method.after_step()

    def enter(self, phase: Phase | None, batch: Batch) -> None:
        """Prepare for a phase or, with None, for the main training.

        Afterwards exactly the parameters that learn have `requires_grad`: a phase names its own,
        in the main training they are those that a term reaches, found by one backward pass on
        `batch` that leaves every state as it was. A term of weight 0 in the first epoch alone
        must therefore still be in the graph.
        """
        self._phase = phase
        if phase is not None:
            learning = {id(p) for p in phase.parameters}
        else:
            for parameter in self._trainable:
                parameter.requires_grad_(True)
            learning = self._reached(batch)
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) in learning)

    def _reads_teachers(self) -> bool:
        own = self._phase is not None or self.weights.method != 0
        return self.weights.kd != 0 or (own and bool(self.method.teacher_taps))

    def _show(self, teacher: Tapped, batch: Batch) -> Views:
        views = zip(self.method.views, batch.images, strict=True)
        return [teacher(images) if view.teacher else None for view, images in views]

    def _soft(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd_loss(student_logits, teacher_logits, self.kd_temperature)

    def _reached(self, batch: Batch) -> set[int]:
        before = {name: value.clone() for name, value in self.state_dict().items()}
        self.train()
        terms = self(batch)
        torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        reached = {id(p) for p in self._trainable if p.grad is not None}
        self.zero_grad(set_to_none=True)
        self.load_state_dict(before)
        return reached


def teacher_context(network: nn.Module, specs: TapSpecs) -> TeacherContext:
    """A teacher's taps and a copy of its linear classifier (if it has one), on the CPU."""
    if specs.classifier is None:
        return TeacherContext(specs, None, None)
    state = network.get_submodule(specs.classifier).state_dict()
    bias = state["bias"].cpu().clone() if "bias" in state else None
    return TeacherContext(specs, state["weight"].cpu().clone(), bias)

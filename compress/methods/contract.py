"""The contract of a distillation method.

A method is one file: the loss as a pure function and a `Method` that calls it. Whatever it trains
is a submodule, whatever it remembers is a buffer, and what it needs of a teacher to ship its
student is copied into its own frozen state. The keyword-only arguments of `__init__`, with the
paper's defaults, are its arguments in a recipe.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.taps import Tapped, TappedForward, Taps, TapSpecs

# Per view: what the network showed, None where it does not see the view.
Views = Sequence[Taps | None]
HardLoss = Callable[[Tensor, Tensor], Tensor]
SoftLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """An augmented view of each image and who sees it; `augment` None is the recipe's own."""

    augment: str | None = None
    student: bool = True
    teacher: bool = True


@dataclass(frozen=True)
class Terms:
    """Weights of hard labels, soft targets and the method's own terms."""

    ce: float
    kd: float
    method: float


def published(weight: float) -> Mapping[str, Terms]:
    """The two protocols for a method whose term has this weight: CE alone, or CE + KD, beside it.

    `crd` is that of the CRD paper's tables, `simkd` that of the SimKD paper's.
    """
    return {"crd": Terms(ce=1, kd=0, method=weight), "simkd": Terms(ce=1, kd=1, method=weight)}


@dataclass(frozen=True)
class TeacherContext:
    """What a method may know of a teacher: its taps and its linear classifier (K, D), (K,).

    Weight and bias are None where it has none.
    """

    taps: TapSpecs
    weight: Tensor | None
    bias: Tensor | None


def teacher_context(network: nn.Module, specs: TapSpecs) -> TeacherContext:
    """A teacher's taps and a copy of its linear classifier (if it has one), on the CPU."""
    if specs.classifier is None:
        return TeacherContext(specs, None, None)
    state = network.get_submodule(specs.classifier).state_dict()
    bias = state["bias"].cpu().clone() if "bias" in state else None
    return TeacherContext(specs, state["weight"].cpu().clone(), bias)


class TeacherForward(Protocol):
    """Gives the taps of one teacher for a view of a batch, by the view's number."""

    def __call__(self, batch: Batch, view: int) -> Taps: ...


@dataclass(frozen=True)
class NetworkForward:
    """A network that runs on the images of each batch."""

    network: TappedForward

    def __call__(self, batch: Batch, view: int) -> Taps:
        """Run the network on the images of a view."""
        return self.network(batch.images[view])


@dataclass(frozen=True)
class Context:
    """What a method is built from.

    `labels` (train_size,) are those of the training images; they are empty where a method is
    rebuilt from a model file, which holds numbers and shapes but no data.
    """

    student: TapSpecs
    teachers: tuple[TeacherContext, ...]
    num_classes: int
    train_size: int
    labels: Tensor
    batch_size: int
    steps_per_epoch: int
    epochs: int


@dataclass(frozen=True)
class Phase:
    """Training before the main one, run by the same loop at a constant learning rate.

    Of `parameters`, those that the loss reaches learn, by the sum of the terms that
    `loss(student, teachers, batch)` returns. `lr` None is that of the main training. Where the loss
    does not read the student, say so: the student is then not run, and its batch norm not moved.
    """

    name: str
    epochs: int
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Views, Sequence[Views], Batch], Mapping[str, Tensor]]
    lr: float | None = None
    reads_student: bool = True


class Method(nn.Module):
    """A distillation method; see the module's docstring."""

    views: ClassVar[tuple[View, ...]] = (View(),)
    batch_coupled: ClassVar[bool] = False  # True where the loss relates samples of a batch
    is_soft_term: ClassVar[bool] = False  # True where the method is the soft term: kd stays 0
    knows_images: ClassVar[bool] = False  # True where the loss is of the very images trained on
    student_taps: Sequence[str] = ()  # kinds or dotted paths, see compress.taps
    teacher_taps: Sequence[str] = ()
    protocols: ClassVar[Mapping[str, Terms]] = published(1)

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The method's own terms: named scalars, weighted by `weights.method`."""
        return {}

    def hard_loss(self, student: Views, batch: Batch, loss: HardLoss) -> Tensor:
        """The term of hard labels on what ships, by default on the student's first view."""
        return loss(self.logits(first(student)), batch.labels)

    def soft_loss(self, student: Views, teachers: Sequence[Views], loss: SoftLoss) -> Tensor:
        """The term of soft targets on what ships, by default on the first view that both see.

        Of several teachers, the mean of their terms.
        """
        view = next(i for i, v in enumerate(self.views) if v.student and v.teacher)
        logits = self.logits(_at(student, view))
        terms = [loss(logits, logits_of(_at(teacher, view))) for teacher in teachers]
        total: Tensor = sum(terms[1:], terms[0])
        return total / len(terms)

    def phases(self) -> list[Phase]:
        """Trainings before the main one."""
        return []

    def remarks(self) -> list[str]:
        """What a user should know of this method on these networks: printed and logged."""
        return []

    def bind(self, student: Tapped) -> None:
        """Called once with the student, for a method that needs a copy or its parameters."""

    def after_step(self) -> None:
        """Called after each optimiser step: the only place where banks and averages move."""

    def logits(self, student: Taps) -> Tensor:
        """The prediction (N, K) from the taps of a student that is being trained.

        `deploy` must give the same numbers; the fuse stage proves it on real images.
        """
        return logits_of(student)

    def deploy(self, student: nn.Module) -> nn.Module:
        """The network that ships: normalised images -> logits (N, K); identity by default.

        Where more than the bare student ships, the result has the parts `encoder` (images -> last
        map) and whatever follows it. It shares parameters with `student` and this method.
        """
        return student


class PretrainedMethod(Method):
    """A method whose term is minimised before the main training.

    There the student's parameters and the method's own learn; in the main training the term's
    published weight is 0.
    """

    protocols: ClassVar[Mapping[str, Terms]] = published(0)

    def __init__(self, context: Context, pretrain_epochs: int) -> None:
        super().__init__(context)
        if pretrain_epochs < 0:
            raise ValueError(f"pretrain_epochs is at least 0, got {pretrain_epochs}")
        self.pretrain_epochs = pretrain_epochs
        self._student: list[nn.Parameter] = []

    def bind(self, student: Tapped) -> None:
        """See `Method.bind`."""
        # A plain list: registered here, the student would be trained and saved twice.
        self._student = [p for p in student.network.parameters() if p.requires_grad]

    def phases(self) -> list[Phase]:
        """The pre-training, none for 0 epochs."""
        if not self.pretrain_epochs:
            return []
        learning = [*self._student, *self.parameters()]
        return [Phase("pretrain", self.pretrain_epochs, learning, self.forward)]


Loss = TypeVar("Loss", bound=Callable[..., Any])


def in_float32(loss: Loss) -> Loss:
    """Make a loss compute in float32 or wider, inside autocast too.

    Half precision loses the small numbers that relations, divergences and means multiply; tensors
    among the positional arguments (or in lists there) are widened.
    """

    @functools.wraps(loss)
    def widened(*arguments: Any, **settings: Any) -> Any:
        wide = [_widened(a) for a in arguments]
        device = next(t for a in wide for t in (a if isinstance(a, list) else [a])).device
        with torch.autocast(device.type, enabled=False):
            return loss(*wide, **settings)

    return widened  # type: ignore[return-value]


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        is_half = value.is_floating_point() and value.element_size() < 4
        return value.float() if is_half else value
    return [_widened(v) for v in value] if isinstance(value, (list, tuple)) else value


def first(views: Views) -> Taps:
    """The taps of the first view that the network sees."""
    return next(taps for taps in views if taps is not None)


def logits_of(taps: Taps) -> Tensor:
    """The logits (N, K) of one view."""
    return taps.tensor("logits")


def pooled(views: Views) -> Tensor:
    """What the classifier reads of the first view, (N, D)."""
    return first(views).tensor("pooled")


def last_map(views: Views) -> Tensor:
    """What the global pooling of the first view reads, (N, C, H, W)."""
    return first(views).tensor("last_map")


def stages(views: Views) -> list[Tensor]:
    """The stage maps of the first view, fine to coarse, each (N, C, H, W)."""
    return first(views).tensors("stages")


def pre_activations(views: Views) -> list[Tensor]:
    """The stage maps of the first view before their activation."""
    return first(views).tensors("pre_activations")


def only_teacher(context: Context, method: str) -> TeacherContext:
    """The one teacher of a method that reads one.

    Raises:
        ValueError: there are several.
    """
    if len(context.teachers) != 1:
        raise ValueError(f"{method} reads one teacher, got {len(context.teachers)}")
    return context.teachers[0]


def pooled_widths(context: Context, method: str) -> tuple[int, int]:
    """Widths D of the pooled vectors of student and teacher, for a method that reads one teacher.

    Raises:
        ValueError: there are several, or a network has no linear classifier to read from.
    """
    teacher = only_teacher(context, method).taps
    for who, specs in (("student", context.student), ("teacher", teacher)):
        if specs.pooled_width is None:
            raise ValueError(f"{method} reads what a linear classifier reads; the {who} has none")
    assert context.student.pooled_width is not None and teacher.pooled_width is not None
    return context.student.pooled_width, teacher.pooled_width


def _at(views: Views, index: int) -> Taps:
    taps = views[index]
    if taps is None:
        raise ValueError(f"view {index} was not shown to this network")
    return taps

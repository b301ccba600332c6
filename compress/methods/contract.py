"""The contract of a distillation method.

A method is one file: the loss as a pure function and a `Method` that calls it. Whatever it trains
is a submodule, whatever it remembers is a buffer, and what it needs of a teacher to ship its
student is copied into its own frozen state. The keyword-only arguments of `__init__`, with the
paper's defaults, are its arguments in a recipe.

A term is a mean over the images, or a sum divided by their number, so that the parts of a step add
up. A method never draws from the global generators in a step: `draw` gives numbers that depend on
the seed, the epoch and the step alone, and that an image has in any number of processes and parts
of a batch. What keeps rows of a batch gathers them with
`distributed.collectives.all_gather_in_order`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.data.augment import ImageView
from compress.data.batch import Batch
from compress.seeding import seed_for
from compress.taps import MapSpec, Tapped, TappedForward, Taps, TapSpecs

# Per view: what the network showed, None where it does not see the view.
Views = Sequence[Taps | None]
HardLoss = Callable[[Tensor, Tensor], Tensor]
SoftLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """An augmented view of each image and who sees it; `augment` None is the recipe's own.

    With `soft` the teacher sees it wherever soft targets have weight, if it does not anyway.
    `rotation` and `mirrored_like` are those of `data.augment.ImageView`. A `joined` view runs
    through the student in one batch with the view before it: one forward pass, one move of its
    batch norms.
    """

    augment: str | None = None
    student: bool = True
    teacher: bool = True
    soft: bool = False
    rotation: int = 0
    mirrored_like: int | None = None
    joined: bool = False

    def is_for_teacher(self, weights: "LossWeights") -> bool:
        """Whether the teacher sees it in a training with these weights."""
        return self.teacher or (self.soft and weights.kd != 0)

    def image_view(self, augment: str) -> ImageView:
        """The same as a view of images, where `augment` is the recipe's augmentation."""
        return ImageView(self.augment or augment, self.rotation, self.mirrored_like)


def joined_views(views: Sequence[View]) -> list[list[int]]:
    """The numbers of the views that run through the student in one batch, batch by batch."""
    groups: list[list[int]] = []
    for number, view in enumerate(views):
        if not view.joined or not groups:
            groups.append([])
        groups[-1] += [number] if view.student else []
    return [group for group in groups if group]


@dataclass(frozen=True)
class LossWeights:
    """Weights of hard labels, soft targets and the method's own terms."""

    ce: float
    kd: float
    method: float


def published(weight: float) -> Mapping[str, LossWeights]:
    """The protocols for a method whose term has this weight: CE alone, or CE + KD, beside it.

    `crd` is that of the CRD paper's tables, `simkd` that of the SimKD paper's, `segmentation` that
    of papers on segmentation, whose methods have pixel-wise terms of their own.
    """
    return {
        "crd": LossWeights(ce=1, kd=0, method=weight),
        "simkd": LossWeights(ce=1, kd=1, method=weight),
        "segmentation": LossWeights(ce=1, kd=0, method=weight),
    }


@dataclass(frozen=True)
class Needs:
    """Views, coupling, teacher taps and published weights of a method: see `Method.needs`.

    `reads_labels`: its own terms or phases do.
    """

    views: tuple[View, ...]
    batch_coupled: bool
    teacher_taps: Sequence[str]
    protocols: Mapping[str, LossWeights]
    reads_labels: bool = False


@dataclass(frozen=True)
class TeacherContext:
    """A teacher as a method knows it: its taps and its linear classifier (K, D), (K,).

    Weight and bias are None where it has none. A method with `copies_teacher` may copy other parts
    of `network`, one with `reads_network` may read its parameters; neither keeps it. `source` is
    what builds such a network again: the architecture, and the code and method of a description
    (see `compress.model_files`).
    """

    taps: TapSpecs
    weight: Tensor | None
    bias: Tensor | None
    network: nn.Module | None = None
    source: Mapping[str, Any] | None = None


def teacher_context(
    network: nn.Module, specs: TapSpecs, source: Mapping[str, Any] | None = None
) -> TeacherContext:
    """A teacher's taps and a copy of its linear classifier (if it has one), on the CPU.

    That of a network with several heads, whose mean is its output, reads what all of them read.
    """
    if not specs.classifiers:
        return TeacherContext(specs, None, None, network, source)
    states = [network.get_submodule(path).state_dict() for path in specs.classifiers]
    weight, bias = _classifier_of(states)
    if specs.is_dense:
        weight = weight.flatten(1)  # of a 1x1 convolution
    return TeacherContext(specs, weight, bias, network, source)


def _classifier_of(heads: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer; of several, those of the one that gives their mean."""
    weights = [head["weight"].cpu().clone() for head in heads]
    biases = [head["bias"].cpu().clone() for head in heads if "bias" in head]
    if len(heads) == 1:
        return weights[0], biases[0] if biases else None
    bias = torch.stack(biases).sum(0) / len(heads) if biases else None
    return torch.cat(weights, dim=1) / len(heads), bias


class TeacherForward(Protocol):
    """Gives the taps of one teacher for a view of a batch, by the view's number."""

    def __call__(self, batch: Batch, view: int) -> Taps: ...


@dataclass(frozen=True)
class NetworkForward:
    """A network that runs on the images of each batch, or on what `convert` makes of them."""

    network: TappedForward
    convert: Callable[[Tensor], Tensor] | None = None

    def __call__(self, batch: Batch, view: int) -> Taps:
        """Run the network on the images of a view."""
        images = batch.images[view]
        return self.network(images if self.convert is None else self.convert(images))


class StoredOutputs(nn.Module):
    """A teacher that is no network: its logits (N, K) of every training image, by their index.

    They are of the image without augmentation, whatever the view.
    """

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, batch: Batch, view: int) -> Taps:
        """See `TeacherForward`."""
        return Taps(logits=self.logits[batch.index])


@dataclass(frozen=True)
class MethodContext:
    """All that a method is built from.

    `labels` (train_size,) are those of the training images; they are empty where a method is
    rebuilt from a model file, which holds numbers and shapes but no data. Where networks embed,
    `num_classes` is 0 and every label is 0.
    """

    student: TapSpecs
    teachers: tuple[TeacherContext, ...]
    num_classes: int
    train_size: int
    labels: Tensor
    batch_size: int
    steps_per_epoch: int
    epochs: int

    def for_each_teacher(self) -> "list[MethodContext]":
        """The context of a method of each teacher alone."""
        return [replace(self, teachers=(teacher,)) for teacher in self.teachers]


@dataclass(frozen=True)
class Phase:
    """Training before or after the main one, run by the same loop.

    Of `parameters`, those that the loss reaches learn, by the sum of the terms that
    `loss(student, teachers, batch)` returns. `lr` None is that of the main training, and so is the
    `schedule` "recipe"; a function maps the share of the phase that is done to a factor of `lr`.

    The student is run to `train`; `frozen`, in eval mode and without gradient, so that no buffer
    moves, its taps not extended (a loss that wants `Method.extend` calls it); or not at all where
    the loss does not read it (`absent`). The same goes for teachers. A `judged` phase evaluates
    after each epoch: what `deploy` gives before the main training, what `ship` gives after it.
    `after_step` is called after each step of the phase, as `Method.after_step` is after those of
    the main training.
    """

    name: str
    epochs: int
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Views, Sequence[Views], Batch], Mapping[str, Tensor]]
    lr: float | None = None
    schedule: Literal["constant", "recipe"] | Callable[[float], float] = "constant"
    student: Literal["train", "frozen", "absent"] = "train"
    reads_teachers: bool = True
    judged: bool = False
    after_step: Callable[[], None] | None = None


@dataclass(frozen=True)
class OwnOptimizer:
    """An optimiser of a method's own: `sgd` with `momentum`, or `adam` with `betas`.

    `lr` does not depend on the training's; where `scheduled`, its schedule multiplies it.
    """

    name: Literal["sgd", "adam"]
    lr: float
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    scheduled: bool = True


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with optimiser settings of their own.

    `lr` is a factor of the training's learning rate, whatever its schedule; `weight_decay` None is
    the training's. With an `optimizer` they have one of their own, whose settings take the place of
    both: networks that learn against each other within a step, such as a student and a
    discriminator. All learn from one backward pass, so a term that is not to move a network reads
    it through detached parameters.
    """

    parameters: Sequence[nn.Parameter]
    lr: float = 1.0
    weight_decay: float | None = None
    optimizer: OwnOptimizer | None = None


class Method(nn.Module):
    """A distillation method; see the module's docstring."""

    views: tuple[View, ...] = (View(),)
    batch_coupled: bool = False  # True where the loss relates samples of a batch
    # False where a coupled method needs no rows of other processes, but exchanges a sum of them.
    gathers_rows: ClassVar[bool] = True
    dense: ClassVar[bool] = False  # True where its terms hold for logits and labels of pixels
    images: ClassVar[bool] = True  # False where they hold for nothing else
    is_soft_term: ClassVar[bool] = False  # True where the method is the soft term: kd stays 0
    knows_images: ClassVar[bool] = False  # True where the loss is of the very images trained on
    reads_index: ClassVar[bool] = False  # True where it tells training images apart by their index
    copies_teacher: ClassVar[bool] = False  # True where its state has layers of the teacher's
    reads_network: ClassVar[bool] = False  # True where it is built from a teacher's parameters
    reads_labels: ClassVar[bool] = False  # True where its own terms or phases read labels
    reads_classifier: ClassVar[bool] = False  # True where it reads the classifier of a network
    student_taps: Sequence[str] = ()  # kinds or dotted paths, see compress.taps
    teacher_taps: Sequence[str] = ()
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(self, context: MethodContext, needs: Needs | None = None) -> None:
        """`needs` of a method whose needs depend on its arguments; None: those of its class."""
        super().__init__()
        if not self.images and not context.student.is_dense:
            raise ValueError("the method is for networks that segment, these classify or embed")
        self.context = context
        self.seed = 0  # of `draw`; whoever builds the method for a training sets it
        if needs is not None:
            self.views = needs.views
            self.batch_coupled = needs.batch_coupled
            self.teacher_taps = needs.teacher_taps

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (nn.Module, nn.Parameter)) and callable(getattr(Method, name, None)):
            raise ValueError(
                f"`{name}` is a function of every method; name the submodule otherwise"
            )
        super().__setattr__(name, value)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """The needs with these arguments: by default the attributes of the class.

        Asked before anything is built, also with arguments that are wrong in kind or number, which
        others refuse. A method that overrides this builds itself with what it returns.
        """
        return Needs(
            cls.views, cls.batch_coupled, cls.teacher_taps, cls.protocols, cls.reads_labels
        )

    @classmethod
    def with_defaults(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a recipe: those given, and the defaults of `__init__` for the others."""
        own = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY} | dict(arguments)

    def extend(self, student: Taps) -> Taps:
        """Return the taps with what the terms and the prediction both need, e.g. a projection.

        Called once in a step for each batch that the student sees, before the rows of processes are
        gathered, so that batch norm in it moves once. `forward`, the losses, `logits` and the
        losses of phases get the result.
        """
        return student

    def observe(self, batch: Batch) -> Mapping[str, Tensor]:
        """Outputs of networks of the method's own on the images: named (N, ...), without gradient.

        Called once in a step, before the rows of processes are gathered; `forward` finds it in
        `batch.observed`. There alone a coupled method can read `batch.images`, since those of other
        processes stay where they are.
        """
        return {}

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
        view = next(i for i, v in enumerate(self.views) if v.student and (v.teacher or v.soft))
        logits = self.logits(_at(student, view))
        targets = [logits_of(_at(teacher, view)) for teacher in teachers]
        terms = [loss(enlarged_to(logits, target), target) for target in targets]
        total: Tensor = sum(terms[1:], terms[0])
        return total / len(terms)

    def phases(self) -> list[Phase]:
        """Trainings before the main one."""
        return []

    def phases_after(self) -> list[Phase]:
        """Trainings after the main one."""
        return []

    def notes(self) -> list[str]:
        """Sentences for the user on this method on these networks: printed and logged."""
        return []

    def bind(self, student: Tapped) -> None:
        """Called once with the student, for a method that needs a copy or its parameters."""

    def late_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that learn though no term reaches them in the first batch.

        All others that are not reached there are frozen, so a term that begins later, or that
        alternates with another, names here what it trains.
        """
        return []

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Parameters with a learning rate or weight decay of their own; by default none.

        Those that do not learn, in a phase or at all, may be among them.
        """
        return []

    def after_step(self) -> None:
        """Called after each optimiser step: the only place where banks and averages move.

        A phase has its own, see `Phase`.
        """

    def generator(self, batch: Batch, key: str = "") -> torch.Generator:
        """A generator for a step, the same in all processes and parts of the step's batch.

        It depends on the seed, the epoch, the step and `key`, which keeps several draws of one step
        apart. Draw from it for all `batch.whole` images, or use `draw`.
        """
        parts: list[int | str] = [self.seed, batch.epoch, batch.step, *([key] if key else [])]
        return torch.Generator(batch.index.device).manual_seed(seed_for(*parts))

    def draw(
        self,
        batch: Batch,
        shape: Sequence[int] = (),
        *,
        key: str = "",
        sample: Callable[..., Tensor] = torch.rand,
    ) -> Tensor:
        """Random numbers (N, *shape) for the images of a batch, see `generator`.

        Args:
            sample: torch.rand, or torch.randn.
        """
        generator = self.generator(batch, key)
        drawn = sample((batch.whole, *shape), generator=generator, device=generator.device)
        return drawn[batch.start : batch.start + len(batch.index)]

    def logits(self, student: Taps) -> Tensor:
        """The output (N, K) from the taps, extended, of a student that is being trained.

        By default the student's own: logits, or the embedding of one without classifier. `deploy`
        must give the same numbers; the fuse stage proves it on real images.
        """
        return student.tensor(self.context.student.output)

    def deploy(self, student: nn.Module) -> nn.Module:
        """The network that is evaluated after each epoch: normalised images -> logits (N, K).

        Where the task has no classes it gives embeddings (N, D), see `compress.tasks.Embedding`.

        By default the student itself, and what ships. Where more than the bare student ships, the
        result has the parts `encoder` (images -> last map) and whatever follows it. It shares
        parameters with `student` and this method.
        """
        return student

    def ship(self, student: nn.Module) -> nn.Module:
        """The network that is saved, fused and exported, built after the last training.

        By default that of `deploy`. Another must give the numbers of `logits`, which the fuse
        stage proves, or be the student itself.
        """
        return self.deploy(student)

    def encoder_taps(self) -> TapSpecs:
        """The student's taps as far as its own layers ship: where its encoder ends, and before."""
        return self.context.student

    def judged_beside(self, student: nn.Module) -> Mapping[str, nn.Module]:
        """Further networks that are evaluated after each epoch, as `METRIC/NAME`.

        They share parameters with `student` and this method.
        """
        return {}


class PretrainedMethod(Method):
    """A method whose term is minimised before the main training.

    There the student's parameters and the method's own learn; in the main training the term's
    published weight is 0.
    """

    protocols: ClassVar[Mapping[str, LossWeights]] = published(0)

    def __init__(self, context: MethodContext, pretrain_epochs: int) -> None:
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


def enlarged_to(student: Tensor, teacher: Tensor) -> Tensor:
    """A student's map (N, C, h, w) at the height and width of a teacher's; vectors as they are.

    Bilinear with aligned corners, as the papers on segmentation enlarge their logits.
    """
    if student.dim() < 4 or student.shape[-2:] == teacher.shape[-2:]:
        return student
    size = teacher.shape[-2:]
    return interpolate(student, size=size, mode="bilinear", align_corners=True)


def first(views: Views) -> Taps:
    """The taps of the first view that the network sees."""
    return next(taps for taps in views if taps is not None)


def logits_of(taps: Taps) -> Tensor:
    """The logits (N, K) of one view."""
    return taps.tensor("logits")


def pooled(views: Views) -> Tensor:
    """The embedding of the first view, which the classifier reads: (N, D)."""
    return first(views).tensor("pooled")


def last_map(views: Views) -> Tensor:
    """The map of the first view that the global pooling reads: (N, C, H, W)."""
    return first(views).tensor("last_map")


def stages(views: Views) -> list[Tensor]:
    """The stage maps of the first view, fine to coarse, each (N, C, H, W)."""
    return first(views).tensors("stages")


def pre_activations(views: Views) -> list[Tensor]:
    """The stage maps of the first view before their activation."""
    return first(views).tensors("pre_activations")


def only_teacher(context: MethodContext) -> TeacherContext:
    """The one teacher of a method that reads one.

    Raises:
        ValueError: there are several.
    """
    if len(context.teachers) != 1:
        raise ValueError(f"the method reads one teacher, got {len(context.teachers)}")
    return context.teachers[0]


def last_maps(context: MethodContext) -> tuple[MapSpec, MapSpec]:
    """Last maps of student and teacher, for a method that reads one teacher.

    Raises:
        ValueError: there are several, or a network has no map whose mean its classifier reads.
    """
    teacher = only_teacher(context).taps
    for who, specs in (("student", context.student), ("teacher", teacher)):
        if specs.last_map is None:
            raise ValueError(
                "the method needs networks that end in global average pooling and a linear layer; "
                f"the {who} does not"
            )
    assert context.student.last_map is not None and teacher.last_map is not None
    return context.student.last_map, teacher.last_map


def require_plain_pooling(specs: TapSpecs, who: str) -> None:
    """For a method that puts a classifier behind a network's last map and a pooling of its own.

    Raises:
        ValueError: the network normalises the mean of its last map before its classifier.
    """
    if specs.pooled_norm is not None:
        raise ValueError(
            "the method puts a linear classifier right behind global average pooling, and the "
            f"{who} normalises in between ('{specs.pooled_norm}'), which the method leaves out"
        )


def pooled_widths(context: MethodContext) -> tuple[int, int]:
    """Widths D of the pooled vectors of student and teacher, for a method that reads one teacher.

    Raises:
        ValueError: there are several, or a network has no linear classifier to read from.
    """
    teacher = only_teacher(context).taps
    for who, specs in (("student", context.student), ("teacher", teacher)):
        if specs.pooled_width is None:
            raise ValueError(f"the method reads what a linear classifier reads; the {who} has none")
    assert context.student.pooled_width is not None and teacher.pooled_width is not None
    return context.student.pooled_width, teacher.pooled_width


def _at(views: Views, index: int) -> Taps:
    taps = views[index]
    if taps is None:
        raise ValueError(f"view {index} was not shown to this network")
    return taps

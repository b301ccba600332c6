"""SimKD+ and SimKD++: SimKD that reuses more of the teacher than its classifier (CVPR 2022).

The teacher is cut after the map F_t of module `cut`. All that follows, its later stages, pooling
and classifier, is copied, frozen and kept in eval mode. The student keeps its layers up to F_s, its
map of module `student_cut`, and drops those after it. As in `simkd`, the projector P learns
L = mean over N, C_t, H, W of (P(F_s) - F_t)^2, and what ships is encoder -> P -> the teacher's
tail.

Taps: the maps at the cuts. Each is one of the network's stage maps (others become stage maps by
`teacher.taps.stages` and `student.taps.stages`) or its last map, with which this is `simkd`.
By default `cut` is the last stage map but one: SimKD+ of a three-stage ResNet, whose SimKD++ is
`cut: layer1`. `student_cut` is by default the student's deepest stage map that is as large as F_t
or a whole multiple of it, and is then average-pooled; a smaller one is refused, since the reused
layers would read a map of another size than they learned from. Where no ReLU makes F_t, P ends
without one. A cut inside a block, which a skip connection goes around, is refused. Loss weights:
0 CE, 0 KD, 1. No released code.

The encoder of a transfer task is the student's own part, up to F_s.

Paper (Chen et al., Figure 5 and Table S.10): resnet32x4 -> resnet8x4, r = 2 on CIFAR-100, accuracy
and pruning ratio: SimKD 78.08 and 80.52 %, SimKD+ 78.47 and 19.21 %, SimKD++ 78.88 and 15.97 %.
Our ratios are 80.53, 19.15 and 3.80 %: no cut that reuses two stages has the paper's third.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from compress.data.batch import Batch
from compress.errors import nearest
from compress.methods.blocks.projectors import Projector, ProjectorKind
from compress.methods.contract import Method, MethodContext, Views, first, only_teacher
from compress.methods.simkd import SimKD, shrink_to, simkd_loss
from compress.taps import MapSpec, Taps, TapSpecs, encoder_until, tail_after


class Reusing(nn.Module):
    """Encoder, projector and the teacher's tail: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(
        self, encoder: nn.Module, shrink: nn.Module, projector: nn.Module, tail: nn.Module
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.shrink = shrink
        self.projector = projector
        self.tail = tail

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.projector(self.shrink(self.encoder(images))))
        return logits


class SimKDPlus(Method):
    """Projector and a frozen copy of the teacher's layers after the cut."""

    copies_teacher = True
    reads_classifier = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols = SimKD.protocols

    def __init__(
        self,
        context: MethodContext,
        *,
        cut: str | None = None,
        student_cut: str | None = None,
        projector: ProjectorKind = "1x1-3x3-1x1",
        reduction: int = 2,
    ) -> None:
        super().__init__(context)
        teacher = only_teacher(context)
        if teacher.network is None:
            raise ValueError("the method copies layers of the teacher, whose network is not here")
        if projector == "vector":
            raise ValueError("the reused layers read a map; projector vector makes none of it")
        target = _map_at(teacher.taps, cut, "cut", "teacher") if cut else _before_last(teacher.taps)
        if not 1 <= reduction <= target.channels:
            raise ValueError(f"reduction is 1 to {target.channels}, got {reduction}")
        own = (
            _map_at(context.student, student_cut, "student_cut", "student")
            if student_cut
            else _deepest(context.student, target)
        )
        if own.height < target.height or own.width < target.width:
            raise ValueError(
                f"the student's map at '{own.path}', {own.height} x {own.width}, is smaller than "
                f"the {target.height} x {target.width} that the reused layers read; "
                "cut the student earlier or the teacher later"
            )
        # Their places alone: what comes between is not read.
        self.student_taps, self.teacher_taps = (own.path,), (target.path,)
        self.cut, self.student_cut = target, own
        self.tail = tail_after(teacher.network, target)
        self.shrink = shrink_to(own, target)
        self.projector = Projector(
            own.channels,
            target.channels,
            reduction,
            kind=projector,
            is_activated=self.tail.is_activated,
        )

    def extend(self, student: Taps) -> Taps:
        """Add `projected`, P(F_s)."""
        own = student.tensor(self.student_cut.path)
        return Taps(student, projected=self.projector(self.shrink(own)))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `simkd`."""
        target = first(teachers[0]).tensor(self.cut.path)
        return {"simkd": simkd_loss(first(student).tensor("projected"), target)}

    def notes(self) -> list[str]:
        """See `Method.notes`."""
        reused = sum(p.numel() for p in self.tail.parameters())
        return [
            f"the student up to '{self.student_cut.path}' and the teacher after '{self.cut.path}': "
            f"{reused:,} of its parameters are reused"
        ]

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        logits: Tensor = self.tail(student.tensor("projected"))
        return logits

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        encoder = encoder_until(student, self.student_cut)
        return Reusing(encoder, self.shrink, self.projector, self.tail)

    def encoder_taps(self) -> TapSpecs:
        """The student's taps up to the cut, which is its last map."""
        specs = self.context.student
        paths = [spec.path for spec in specs.stages]
        kept = paths.index(self.student_cut.path) + 1 if self.student_cut.path in paths else None
        return replace(
            specs,
            stages=specs.stages[:kept],
            pre_activations=specs.pre_activations[:kept],
            last_map=self.student_cut,
        )


def _maps(specs: TapSpecs) -> dict[str, MapSpec]:
    """The maps at which a network can be cut, by path: its stage maps and its last map."""
    maps = [*specs.stages, *([specs.last_map] if specs.last_map else [])]
    return {spec.path: spec for spec in maps}


def _map_at(specs: TapSpecs, path: str, argument: str, who: str) -> MapSpec:
    maps = _maps(specs)
    if path not in maps:
        raise ValueError(
            f"{argument} '{path}' is none of the {who}'s stage maps, which are "
            f"{', '.join(maps) or 'none'}; {who}.taps.stages names others{nearest(path, maps)}"
        )
    return maps[path]


def _before_last(specs: TapSpecs) -> MapSpec:
    if len(specs.stages) < 2:
        raise ValueError(
            f"the teacher has {len(specs.stages)} stage maps, so there is none before the last; "
            "name others by teacher.taps.stages"
        )
    return specs.stages[-2]


def _deepest(specs: TapSpecs, target: MapSpec) -> MapSpec:
    """The student's deepest map that can be pooled to the size of the teacher's."""
    fitting = [
        spec
        for spec in _maps(specs).values()
        if spec.height % target.height == 0 and spec.width % target.width == 0
    ]
    if not fitting:
        raise ValueError(
            f"no stage map of the student is a whole multiple of the teacher's {target.height} x "
            f"{target.width} map at '{target.path}'; cut the teacher elsewhere"
        )
    return fitting[-1]

"""FSP: A Gift from Knowledge Distillation, Flow of Solution Procedure (Yim et al., CVPR 2017).

L = sum_i mean over N, C_{i+1}, C_i of (G_s^i - G_t^i)^2, with G^i[n,a,b] = mean over pixels of
F^{i+1}[n,a] * F^i[n,b] for consecutive maps F^i (N, C_i, H, W) of one network, the finer one
average-pooled to the size of the coarser. (The title: A Gift from Knowledge Distillation: Fast
Optimization, Network Minimization and Transfer Learning.)

Taps: the stem and the stage maps of both; where one of them has no stem map (in torchvision's
ResNets it is the first stage), it is left out for both. Both networks must have the same number of
maps and the same widths, since nothing is trained between them.

The term is minimised before the main training, for 30 epochs at the student's learning rate: the
student's parameters that it reaches learn. In the main training its published weight is 0: CE
alone, or with KD in protocol `simkd` (the CRD repository's 50 is unused). A recipe that gives
`weights.method` adds the very same term to the main training. Form, maps and epochs are the CRD
repository's.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 72.62.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller
from compress.methods.contract import (
    MethodContext,
    PretrainedMethod,
    Views,
    first,
    only_teacher,
    stages,
)
from compress.precision import in_float32
from compress.taps import TapSpecs


@in_float32
def fsp_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean squared difference of the two networks' Gram matrices, summed over consecutive maps.

    Args:
        student: at least two maps, fine to coarse, each (N, C_i, H, W).
        teacher: as many maps of the same widths; sizes may differ.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the maps are equal.
    """
    own, target = _flows(student), _flows(teacher)
    total = own[0].new_zeros(())
    for mine, theirs in zip(own, target, strict=True):
        total = total + (mine - theirs).square().mean()
    return total


def _flows(maps: list[Tensor]) -> list[Tensor]:
    """Gram matrices of consecutive maps, each (N, C_{i+1}, C_i)."""
    flows = []
    for pair in pairwise(maps):
        fine, coarse = (m.flatten(2) for m in pool_to_smaller(*pair))
        flows.append(coarse @ fine.mT / fine.shape[-1])
    return flows


class FSP(PretrainedMethod):
    """A pre-training of the student on the flows between its maps."""

    dense = True
    student_taps = ("stem", "stages")
    teacher_taps = ("stem", "stages")

    def __init__(self, context: MethodContext, *, pretrain_epochs: int = 30) -> None:
        super().__init__(context, pretrain_epochs)
        own, target = context.student, only_teacher(context).taps
        self.with_stem = own.stem is not None and target.stem is not None
        widths = self._widths(own), self._widths(target)
        if widths[0] != widths[1] or len(widths[0]) < 2:
            raise ValueError(
                "the method needs two or more feature maps of the same widths in both networks, "
                f"got {_join(widths[0])} in the student and {_join(widths[1])} in the teacher"
            )

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `fsp`."""
        return {"fsp": fsp_loss(self._maps(student), self._maps(teachers[0]))}

    def notes(self) -> list[str]:
        """See `Method.notes`."""
        stems = [specs.stem for specs in (self.context.student, self.context.teachers[0].taps)]
        if self.with_stem or stems == [None, None]:
            return []
        who = "student" if stems[0] is None else "teacher"
        return [f"the {who} has no stem map, so the first stages are the first maps of both"]

    def _widths(self, specs: TapSpecs) -> list[int]:
        maps = (*([specs.stem] if self.with_stem else ()), *specs.stages)
        return [m.channels for m in maps if m is not None]

    def _maps(self, views: Views) -> list[Tensor]:
        stem = [first(views).tensor("stem")] if self.with_stem else []
        return [*stem, *stages(views)]


def _join(widths: list[int]) -> str:
    return ", ".join(map(str, widths)) if widths else "none"

"""WCoRD: Wasserstein Contrastive Representation Distillation (Chen et al.; CVPR 2021).

L = l_1 L_GCKT + l_2 L_LCKT: the Wasserstein distance by its dual form against memory banks
(`gckt.py`) and by its primal form within a batch (`lckt.py`), which have their formulas and what
was chosen in them. `global_weight` l_1 is 0.8, that of CRD, and `local_weight` l_2 is 1, that of
`lckt`. No code is released.

Taps: pooled vectors. What the CoCoRD paper prints as WCoRD is this, without KD.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 75.95, with KD 76.15.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from compress.data.batch import Batch
from compress.methods.contract import LossWeights, MethodContext, Views, only_teacher, published
from compress.methods.gckt import GCKT
from compress.methods.lckt import LCKT


class WCoRD(GCKT):
    """Both terms, weighted."""

    batch_coupled = True
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        global_weight: float = 0.8,
        local_weight: float = 1.0,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        features: int = 128,
        regularisation: float = 0.05,
        iterations: int = 50,
    ) -> None:
        only_teacher(context)
        if min(global_weight, local_weight) <= 0:
            raise ValueError(
                f"weights are above 0, got {global_weight}, {local_weight}; gckt and lckt are the "
                "parts alone"
            )
        super().__init__(
            context,
            negatives=negatives,
            temperature=temperature,
            momentum=momentum,
            features=features,
        )
        self.global_weight, self.local_weight = global_weight, local_weight
        self.local = LCKT(context, regularisation=regularisation, iterations=iterations)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `gckt` and `lckt`."""
        of_banks = super().forward(student, teachers, batch)[self.term]
        of_batch = self.local(student, teachers, batch)["lckt"]
        return {"gckt": self.global_weight * of_banks, "lckt": self.local_weight * of_batch}

"""NORM+CRD: N-to-one matching beside contrast (Liu et al.; ICLR 2023).

L = L_NORM + w L_CRD, see `norm` and `crd`. The student's embedding that is contrasted is that
behind the linear module, which its classifier reads. w = `contrast_weight` is 2.5 in the authors'
code (OSVAI/NORM), which takes the factor of the logits for it; no schedule weighs it. The other
arguments and their defaults are those of the two methods, the loss weights and what ships those of
`norm`.

Taps: last maps and pooled vectors. What CRD remembers of the training images stays behind with the
training: the student's file has none of it.

Paper (Table 1, mean, as in the README of its repository): resnet32x4 -> resnet8x4 on CIFAR-100
76.49.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from compress.data.batch import Batch
from compress.methods.contract import MethodContext, Views
from compress.methods.crd import CRD
from compress.methods.norm import NORM, Schedule


class NORMCRD(NORM):
    """NORM, and CRD of what the student's classifier reads."""

    knows_images = True
    reads_labels = True
    teacher_taps = ("last_map", "pooled")

    def __init__(
        self,
        context: MethodContext,
        *,
        contrast_weight: float = 2.5,
        copies: int = 8,
        residual: bool = True,
        logit_scale: float = 2.5,
        schedule: Schedule = "cifar",
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        features: int = 128,
        mode: Literal["exact", "relax"] = "exact",
    ) -> None:
        super().__init__(
            context, copies=copies, residual=residual, logit_scale=logit_scale, schedule=schedule
        )
        if contrast_weight <= 0:
            raise ValueError(
                f"contrast_weight is above 0 (without contrast: norm), got {contrast_weight}"
            )
        self.contrast_weight = contrast_weight
        self.contrast = CRD(
            context,
            negatives=negatives,
            temperature=temperature,
            momentum=momentum,
            features=features,
            mode=mode,
        )

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `norm` and `crd`."""
        self.contrast.seed = self.seed  # its draws are this training's
        terms = super().forward(student, teachers, batch)
        contrast = self.contrast(student, teachers, batch)["crd"]
        return {**terms, "crd": self.contrast_weight * contrast}

    def after_step(self) -> None:
        """See `Method.after_step`."""
        self.contrast.after_step()

    def notes(self) -> list[str]:
        """Those of CRD."""
        return self.contrast.notes()

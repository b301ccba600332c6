"""No distillation: the student alone, trained on hard labels under the same budget.

L = CE(z_s, y). The baseline of every table ("Student" in the papers).
"""

from collections.abc import Mapping
from typing import ClassVar

from compress.methods.contract import LossWeights, Method, MethodContext


class Alone(Method):
    """No terms of its own; no teacher is run."""

    dense = True
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=0),
        "simkd": LossWeights(ce=1, kd=0, method=0),
        "segmentation": LossWeights(ce=1, kd=0, method=0),
    }

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)

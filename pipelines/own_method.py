"""A method of one's own in one file, as `own_method.yaml` names it.

The embeddings of student and teacher are to have one direction:

    L = 1 - mean over the images of cos(W s, t)

with s (N, D) the student's embedding, which its classifier reads, t (N, D') the teacher's, and W a
linear layer that learns with the student and does not ship.

`compress methods --test pipelines/own_method.py:Direction` checks what every method promises.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from compress.data import Batch
from compress.methods import Method, MethodContext, Views
from compress.methods.contract import pooled, pooled_widths
from compress.precision import in_float32


class Direction(Method):
    """Keyword-only arguments are the keys of the recipe; their types and defaults are checked."""

    student_taps = ("pooled",)  # what the terms read: see docs/guides/methods.md
    teacher_taps = ("pooled",)

    def __init__(self, context: MethodContext, *, bias: bool = False) -> None:
        super().__init__(context)
        self.adapter = nn.Linear(*pooled_widths(context), bias=bias)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The method's own terms: named scalars."""
        return {"direction": direction_loss(self.adapter(pooled(student)), pooled(teachers[0]))}


@in_float32  # whatever the precision of the networks
def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Two sets of embeddings (N, D) -> the mean of 1 - cosine, ()."""
    return 1 - cosine_similarity(student, teacher).mean()

"""How alike the representations of a student and its teacher are.

>>> import torch
>>> from eval.representation import cka, correlation_difference
>>> features = torch.eye(6)
>>> round(cka(features, 2 * features), 4)
1.0
>>> logits = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 2.0]])
>>> correlation_difference(logits, 3 * logits + 1).mean_absolute
0.0
"""

from eval.representation.cka import cka
from eval.representation.correlation import (
    CorrelationDifference,
    correlation_difference,
    logit_correlation,
)
from eval.representation.embeddings import silhouette
from eval.representation.entropy import concept_iou, concepts, pixel_entropy

__all__ = [
    "CorrelationDifference",
    "cka",
    "concept_iou",
    "concepts",
    "correlation_difference",
    "logit_correlation",
    "pixel_entropy",
    "silhouette",
]

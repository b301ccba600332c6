"""Linear probe: how well a linear classifier reads new classes off the frozen encoder.

CRD (Tian et al., ICLR 2020, Table 4) and DLKD (Table X) freeze a student of CIFAR-100, resize
STL-10 or TinyImageNet to 32x32 and train a linear classifier on the pooled features. Here each
channel is first shifted and scaled by the training pictures' mean and deviation, which makes one
learning rate fit distilled and random encoders alike; `standardise: false` is the papers' way.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from compress.distributed.collectives import on_main_process, own_share
from compress.seeding import seeded
from eval.data.batches import KeyedBatches
from eval.data.labelled import DATASETS
from eval.linear_probe.features import (
    Features,
    class_probabilities,
    features_of,
    open_pictures,
    score_predictions,
)
from eval.transfer.context import Start, TransferContext, compare_inits, fine_tune, result
from eval.transfer.paired import compare_predictions

__all__ = ["DATASETS", "linear_probe"]

_LBFGS_STEPS = 2000
_LBFGS_TOLERANCE = 1e-6  # at scikit-learn's 1e-4 it stops early: 78.0 in place of 78.3 % once seen


def linear_probe(
    context: TransferContext, *, solver: Literal["sgd", "lbfgs"] = "sgd", standardise: bool = True
) -> dict[str, Any]:
    """Run the probe for every init.

    Args:
        solver: sgd trains as the entry's `train` says; lbfgs is quick: it minimises the same loss
            with the same weight decay to its end, and knows no seed.
        standardise: shift and scale each channel before the linear layer.
    """
    pictures = open_pictures(context)
    data = pictures(context.origin(context.main).preprocessing)

    def evaluate(start: Start) -> dict[str, float]:
        features = features_of(context, start, pictures(start.origin.preprocessing))
        if standardise:
            features = features.standardise()
        if solver == "lbfgs":
            weight_decay = context.settings.weight_decay
            probabilities = on_main_process(lambda: _by_lbfgs(features, weight_decay))
            return score_predictions(start, features, probabilities.argmax(1), probabilities)
        logits = _by_sgd(context, start, features)
        probabilities = logits.float().softmax(1).cpu().numpy()
        return score_predictions(start, features, logits.argmax(1).cpu().numpy(), probabilities)

    rows = compare_inits(context, evaluate, compare_predictions)
    return result(
        context,
        rows,
        protocol=_protocol(solver, standardise),
        headline="top1_percent",
        train_images=len(data.train),
        test_images=len(data.test),
    )


def _protocol(solver: str, standardise: bool) -> str:
    when = "after the last epoch" if solver == "sgd" else "at the minimum that L-BFGS finds"
    kind = "average-pooled, standardised" if standardise else "average-pooled"
    return (
        f"top-1 accuracy on the test pictures {when}, of one linear layer trained on the frozen "
        f"encoder's {kind} features"
    )


def _by_sgd(context: TransferContext, start: Start, features: Features) -> Tensor:
    """Logits (N, K) of the test pictures."""
    with seeded(start.seed, "linear_probe", "head"):
        head = nn.Linear(features.train.shape[1], features.classes).to(context.device)

    def collate(indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices, device=context.device)
        return features.train[chosen], features.train_labels[chosen]

    batches = KeyedBatches(
        count=len(features.train_labels),
        batch_size=context.settings.batch_size,
        seed=start.seed,
        flip=False,
        read=lambda index, *_: index,
        collate=collate,
    )
    fine_tune(context, start, ProbeLoss(head), batches, "linear probe")
    with torch.no_grad():
        logits: Tensor = head(features.test)
    return logits


def _by_lbfgs(features: Features, weight_decay: float) -> NDArray[np.float64]:
    """Probabilities (N, K) of the test pictures; the decay is that of SGD on the mean loss."""
    strength = 1 / (len(features.train) * max(weight_decay, 1e-9))
    model = LogisticRegression(C=strength, max_iter=_LBFGS_STEPS, tol=_LBFGS_TOLERANCE)
    return class_probabilities(model, features, dtype=torch.float64)


class ProbeLoss(nn.Module):
    """Cross-entropy of the linear head on cached features."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """batch is features (N, C) and labels (N,); the term is this process's share."""
        features, labels = batch
        loss = functional.cross_entropy(self.head(features), labels)
        return {"ce": own_share(len(labels)) * loss}

"""knn: how close pictures of one class lie in the feature space of the encoder.

The k-NN classifier of DLKD (k = 10, as in SEED, Fang et al., ICLR 2021): the majority class of the
training pictures whose pooled features are the most similar. Nothing is trained, so the seed
matters only to a random encoder.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from compress.distributed.collectives import on_main_process
from compress.errors import UserError
from eval.data.labelled import DATASETS
from eval.linear_probe.features import (
    Features,
    class_probabilities,
    features_of,
    open_pictures,
    score_predictions,
)
from eval.transfer.context import Start, TransferContext, compare_inits, result
from eval.transfer.paired import compare_predictions

__all__ = ["DATASETS", "knn"]


def knn(
    context: TransferContext, *, k: int = 10, metric: Literal["cosine", "euclidean"] = "cosine"
) -> dict[str, Any]:
    """Classify the test pictures by their `k` nearest training pictures, for every init."""
    pictures = open_pictures(context)
    data = pictures(context.origin(context.main).preprocessing)

    def evaluate(start: Start) -> dict[str, float]:
        features = features_of(context, start, pictures(start.origin.preprocessing))
        if not 1 <= k <= len(features.train):
            raise UserError(f"knn: k is {k}, but there are {len(features.train)} training pictures")
        probabilities = on_main_process(lambda: knn_shares(features, k=k, metric=metric))
        return score_predictions(start, features, probabilities.argmax(1), probabilities)

    rows = compare_inits(context, evaluate, compare_predictions)
    protocol = (
        f"top-1 accuracy on the test pictures, each given the majority class of its {k} nearest "
        f"training pictures by {metric} distance of the frozen encoder's average-pooled features"
    )
    return result(
        context,
        rows,
        protocol=protocol,
        headline="top1_percent",
        train_images=len(data.train),
        test_images=len(data.test),
    )


def knn_accuracy(features: Features, *, k: int, metric: str) -> float:
    """Percent of the test pictures that have the majority class of their `k` nearest."""
    predicted = knn_shares(features, k=k, metric=metric).argmax(1)
    return 100 * float((predicted == features.test_labels.cpu().numpy()).mean())


def knn_shares(features: Features, *, k: int, metric: str) -> NDArray[np.float64]:
    """(N, K): of each test picture, the share of every class among its `k` nearest.

    The prediction is the class of the largest share, of equal ones the first.
    """
    model = KNeighborsClassifier(n_neighbors=k, metric=metric, algorithm="brute")
    return class_probabilities(model, features)

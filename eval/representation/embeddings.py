"""t-SNE of embeddings, and the silhouette score of their classes.

DLKD (Ding et al., TNNLS 2022, Figure 2) shows the embeddings of ten classes of CIFAR-100 by t-SNE
(van der Maaten and Hinton, JMLR 2008), drawn at random and not named; here they are the first ten.

The number beside the picture is the mean silhouette (Rousseeuw 1987) of the embeddings themselves:

    s[i] = (b[i] - a[i]) / max(a[i], b[i]),  in -1 to 1,

a the mean Euclidean distance of image i to the others of its class, b that to the images of the
nearest other class. It is of the embeddings and not of the map, since t-SNE keeps neither distances
nor sizes of groups and looks different for each perplexity and seed. It needs no second number such
as a count of neighbours, holds what the picture shows (groups that are narrow and far apart), and
does not change with the scale of an embedding, so that two networks can be compared. Euclidean are
also the distances that t-SNE reads.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor


def silhouette(embeddings: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette of embeddings (N, D) by class labels (N,).

    None where there is one class, or no class has a second image.
    """
    if not 2 <= len(torch.unique(labels)) < len(labels):
        return None
    return float(silhouette_score(embeddings.double().numpy(), labels.numpy()))


def tsne_map(embeddings: Tensor, *, perplexity: float, seed: int) -> NDArray[Any]:
    """Places (N, 2) in the plane of embeddings (N, D), N of 4 at least; the same for a seed.

    `perplexity` is lowered to (N - 1) / 3 where there are few images.
    """
    usual = min(perplexity, (len(embeddings) - 1) / 3)
    model = TSNE(perplexity=usual, init="pca", random_state=seed)
    places: NDArray[Any] = model.fit_transform(embeddings.numpy().astype(np.float32))
    return places


def of_first_classes(labels: Tensor, *, classes: int, count: int) -> Tensor:
    """Places among labels (N,) of up to `count` of the first `classes`, equally many of each."""
    share = max(1, count // classes)
    chosen = [(labels == label).nonzero().flatten()[:share] for label in range(classes)]
    return torch.cat(chosen)

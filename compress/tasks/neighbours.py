"""Nearest neighbours of embeddings by cosine: who has the same ones, and whose class they have."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

_ROWS = 1024  # at once


def mutual_knn_percent(first: Tensor, second: Tensor, k: int = 10) -> float:
    """Percent of the k nearest neighbours of each image that two embeddings have in common.

    m(i) = |knn_1(i) and knn_2(i)| / k, its mean over the images; by cosine, the image itself is
    none of its neighbours. Two unrelated embeddings have about k / (N - 1). Huh et al., The
    Platonic Representation Hypothesis (2024), and its released code.

    Args:
        first: (N, D_1) of two images or more.
        second: (N, D_2) of the same images in the same order.
        k: at most N - 1 are taken.
    """
    count = len(first)
    k = min(k, count - 1)
    shared = 0
    for rows in torch.split(torch.arange(count), _ROWS):
        one, other = (_nearest(e[rows], e, k, itself=rows) for e in (first, second))
        shared += int((one[:, :, None] == other[:, None, :].to(one.device)).sum())
    return 100 * shared / (count * k)


def knn_top1_percent(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 10
) -> float:
    """Percent of the test images that have the majority class of their k nearest training images.

    By cosine; of classes that are equally frequent there, the first is taken.

    Args:
        train: embeddings (M, D), `train_labels` (M,).
        test: embeddings (N, D), `test_labels` (N,).
        k: at most M are taken.
    """
    labels = train_labels.to(train.device)
    right = 0
    for rows in torch.split(torch.arange(len(test)), _ROWS):
        nearest = _nearest(test[rows], train, min(k, len(train)))
        votes = one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
        right += int((votes.argmax(1).cpu() == test_labels[rows].cpu()).sum())
    return 100 * right / len(test)


def _nearest(rows: Tensor, among: Tensor, k: int, itself: Tensor | None = None) -> Tensor:
    """(R, k): the numbers of the `k` nearest of `among` (M, D) to each of `rows` (R, D).

    `itself` (R,): one of them that is left out for each row.
    """
    similarities = normalize(rows.float()) @ normalize(among.float()).t()
    if itself is not None:
        place = itself.to(similarities.device)[:, None]
        similarities = similarities.scatter(1, place, float("-inf"))
    return similarities.topk(k, dim=1).indices

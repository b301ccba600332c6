"""Centred kernel alignment (CKA) between the layers of two networks.

Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019); DLKD
(Ding et al., TNNLS 2022, Figure 3) has it between teacher and student, with the RBF kernel. Of the
kernel matrices K and L (n, n) of the same n images in two layers

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

The estimator of HSIC is the unbiased one (Song et al., JMLR 2012), averaged over batches as by
Nguyen et al. ("Do Wide and Deep Networks Learn the Same Things?", ICLR 2021): with zero diagonals

    HSIC = [tr(K L) + (1' K 1)(1' L 1) / ((n-1)(n-2)) - 2 (1' K L 1) / (n-2)] / (n (n-3))

Unbiased for two reasons. A stage's map has far more numbers than a batch has images, and there the
biased estimate is close to 1 for any two layers, related or not. And only the mean of unbiased
estimates over batches is one of all images, so that memory holds one batch's maps at a time. The
price: of unrelated layers it is about 0 and may be slightly negative.

Maps (n, C, H, W) are flattened, positions kept, as in Kornblith et al. Linear kernel x . y; RBF
exp(-|x - y|^2 / (2 s^2)), s a fraction of the median distance between different images of the
batch (theirs: 0.2, 0.4 and 0.8; DLKD prints none).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.errors import UserError

LEAST_IMAGES = 4  # of a batch


def linear_gram(features: Tensor) -> Tensor:
    """Kernel matrix (n, n), float64 with diagonal 0, of features (n, ...)."""
    return _inner_products(features).fill_diagonal_(0)


def rbf_gram(features: Tensor, fraction: float) -> Tensor:
    """The same of the RBF kernel whose width is `fraction` of the median distance.

    Where all images are alike every entry is 1.
    """
    products = _inner_products(features)
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    count = len(distances)
    between = distances[~torch.eye(count, dtype=torch.bool, device=distances.device)]
    width = fraction * between.sqrt().median()
    scale = 2 * width.square().clamp_min(torch.finfo(torch.float64).tiny)
    return (-distances / scale).exp().fill_diagonal_(0)


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC, a float64 scalar, of kernel matrices (n, n) whose diagonals are 0."""
    n = len(first)
    if n < LEAST_IMAGES:
        raise ValueError(f"unbiased HSIC needs {LEAST_IMAGES} images, got {n}")
    rows, columns = first.sum(1), second.sum(1)
    trace = (first * second).sum()
    means = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return (trace + means - 2 * (rows @ columns) / (n - 2)) / (n * (n - 3))


class CkaMatrix:
    """CKA of every layer of one network with every layer of another, summed up over batches."""

    def __init__(self) -> None:
        self._between: list[Tensor] = []
        self._within: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch: the kernel matrices of each network's layers."""
        pairs = [torch.stack([hsic(one, other) for other in second]) for one in first]
        self._between.append(torch.stack(pairs))
        for layers, sums in zip((first, second), self._within, strict=True):
            sums.append(torch.stack([hsic(one, one) for one in layers]))

    def value(self) -> Tensor:
        """(layers of the first, layers of the second), float64.

        NaN where a layer gives the same for every image.
        """
        first, second = (torch.stack(sums).mean(0) for sums in self._within)
        norms = (first[:, None] * second[None, :]).sqrt()
        return torch.stack(self._between).mean(0) / norms.masked_fill(norms == 0, float("nan"))


def cka(first: Tensor, second: Tensor, *, rbf_fraction: float | None = None) -> float:
    """CKA of two layers' features (n, ...) of the same n images; linear without a fraction."""
    matrix = CkaMatrix()
    grams = [
        linear_gram(one) if rbf_fraction is None else rbf_gram(one, rbf_fraction)
        for one in (first, second)
    ]
    matrix.add(grams[:1], grams[1:])
    return float(matrix.value())


def even_batches(count: int, batch_size: int) -> list[int]:
    """Sizes of batches of `count` images, none above `batch_size`, that differ by one at most.

    Raises:
        UserError: there are too few images for one batch.
    """
    if count < LEAST_IMAGES or batch_size < LEAST_IMAGES:
        raise UserError(
            f"{LEAST_IMAGES} images are needed in a batch, got {min(count, batch_size)}"
        )
    number = -(-count // batch_size)
    return [count // number + (place < count % number) for place in range(number)]


def _inner_products(features: Tensor) -> Tensor:
    """(n, n) float64 of features without their mean, which HSIC does not see; less rounding."""
    flat = features.flatten(1).float()
    centred = flat - flat.mean(0)
    return (centred @ centred.t()).double()

"""Average pooling to a fixed number of cells that can be exported for maps of any size.

ONNX has no adaptive pooling, and its pooling operators have kernels of a fixed size. With free
height and width the same means are therefore two matrix products, with matrices that are made of
the map's size.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate


def adaptive_average(maps: Tensor, bins: int) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, bins, bins), the means of torch's `adaptive_avg_pool2d`.

    Cells overlap where `bins` is no divisor of h or w. It is torch's own operator wherever that
    runs; only while the network is exported it is `average_by_products`.
    """
    return _average(maps, bins)


# A graph of torch.fx (folded, cut at taps) calls it, so that it may be exported afterwards.
@torch.fx.wrap
def _average(maps: Tensor, bins: int) -> Tensor:
    if _is_exported():
        return average_by_products(maps, bins)
    return adaptive_avg_pool2d(maps, bins)


def enlarge_cells(cells: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Cells (N, C, bins, bins) -> (N, C, *size), bilinear with aligned corners.

    While the network is exported a single cell is repeated, which is the same: OpenCV 5.0 reads
    beyond it when it interpolates.
    """
    return _enlarge(cells, size)


@torch.fx.wrap
def _enlarge(cells: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if _is_exported() and cells.shape[-2:] == (1, 1):
        return cells.expand(-1, -1, size[0], size[1])
    return interpolate(cells, size=size, mode="bilinear", align_corners=True)


def _is_exported() -> bool:
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def average_by_products(maps: Tensor, bins: int) -> Tensor:
    """The same, from operators that take any h and w when exported: means over rows, columns."""
    if bins == 1:
        return maps.mean((2, 3), keepdim=True)
    rows = _averaging(maps[0, 0, :, 0], bins)
    columns = _averaging(maps[0, 0, 0, :], bins)
    return torch.matmul(torch.matmul(rows, maps), columns.transpose(0, 1))


def _averaging(line: Tensor, bins: int) -> Tensor:
    """The matrix (bins, L) that averages L numbers to cells; of `line` (L,) only the size counts.

    Cell i of b is from floor(i L / b) to ceil((i + 1) L / b), in whole numbers of float32, which
    are exact: position p lies in it where (p + 1) b > i L and p b < (i + 1) L.
    """
    position = torch.ones_like(line).cumsum(0)  # 1 .. L
    length = position[-1]
    first = torch.arange(bins, dtype=line.dtype, device=line.device)[:, None] * length
    inside = (position * bins > first) & ((position - 1) * bins < first + length)
    weights = inside.to(line.dtype)
    return weights / weights.sum(1, keepdim=True)

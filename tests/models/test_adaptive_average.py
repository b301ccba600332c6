"""Average pooling that exports with free height and width equals torch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from compress.models.segmentation.pooling import adaptive_average, average_by_products


def _cells(maps: Tensor, bins: int) -> Tensor:
    """The means with loops: cell i is from floor(i n / bins) to ceil((i + 1) n / bins)."""
    height, width = maps.shape[-2:]
    out = torch.zeros(*maps.shape[:2], bins, bins, dtype=maps.dtype)
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            out[:, :, i, j] = maps[:, :, rows, columns].mean((2, 3))
    return out


@pytest.mark.parametrize("size", [(7, 13), (1, 5), (4, 4), (24, 33), (2, 3)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_it_is_torchs_in_value_and_gradient(bins: int, size: tuple[int, int]) -> None:
    """Also where cells overlap, and where they are more than the map has pixels."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(2, 3, bins, bins, dtype=torch.float64, generator=generator)
    ours, theirs = average_by_products(maps, bins), adaptive_avg_pool2d(maps, bins)
    torch.testing.assert_close(ours, _cells(maps, bins))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((out * weights).sum(), maps)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(adaptive_average(maps, bins), theirs)


class _Pool(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return adaptive_average(maps, 3) + adaptive_average(maps, 6).mean()


@pytest.mark.parametrize("network", [_Pool(), torch.fx.symbolic_trace(_Pool())])
def test_an_exported_program_takes_any_height_and_width(network: nn.Module) -> None:
    """A cell's edges follow the map; nothing is fixed to the example's size, folded or not."""
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(network, (torch.zeros(2, 3, 12, 15),), dynamic_shapes=(free,))
    for size in ((12, 15), (7, 31), (40, 9)):
        maps = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(program.module()(maps), _Pool()(maps))
    operators = {str(node.target) for node in program.graph.nodes}
    assert "aten.matmul.default" in operators
    assert not any("adaptive" in name for name in operators)


def test_it_is_traced_by_torch_fx() -> None:
    """Sizes are proxies there."""
    traced = torch.fx.symbolic_trace(_Pool())
    maps = torch.randn(2, 3, 9, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(traced(maps), _Pool()(maps))

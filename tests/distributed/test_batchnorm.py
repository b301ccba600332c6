"""Batch norm over two processes is that of one: outputs, gradients, running statistics."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from compress.distributed.batchnorm import synchronised_batchnorm
from compress.distributed.collectives import all_reduce, all_reduce_gradients
from compress.errors import UserError
from compress.models import build
from tests.processes import on_two_ranks

ROWS, FIRST = 8, 5  # the first process has 5 of the 8 rows
LAYERS = {
    "images": lambda: nn.BatchNorm2d(4),
    "last channels": lambda: nn.BatchNorm2d(4),
    "vectors": lambda: nn.BatchNorm1d(4, momentum=0.3),
    "mean of all steps": lambda: nn.BatchNorm2d(4, momentum=None),
    "not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "untracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def _layer(name: str, own: slice) -> dict[str, Tensor]:
    """Two steps of one layer on some of the rows, with all that they leave behind."""
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    if layer.affine:
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
    shape = (ROWS, 4) if name == "vectors" else (ROWS, 4, 3, 2)
    results: dict[str, Tensor] = {}
    with synchronised_batchnorm(layer):
        for step in range(2):
            rows = 3 + torch.randn(shape, dtype=torch.float64)
            weights = torch.randn(shape, dtype=torch.float64)[own]
            rows = rows.to(memory_format=torch.channels_last) if name[:4] == "last" else rows
            own_rows = rows[own].detach().requires_grad_()
            out = layer(own_rows)
            (out.sin() * weights).sum().backward()
            results |= {f"out {step}": out.detach(), f"gradient {step}": own_rows.grad}
            results[f"is channels last {step}"] = torch.tensor(
                out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last)
            )
    all_reduce_gradients([*layer.parameters()])
    results |= {f"of {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {**results, **layer.state_dict()}


def _network(own: slice) -> dict[str, Tensor]:
    """Steps of a whole network in training."""
    torch.manual_seed(0)
    network = build("resnet8", num_classes=3, seed=0).double()
    names = list(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with synchronised_batchnorm(network):
        assert list(network.state_dict()) == names
        for _ in range(3):
            images = torch.randn(ROWS, 3, 16, 16, dtype=torch.float64)
            labels = torch.randint(3, (ROWS,))
            optimizer.zero_grad()
            loss = cross_entropy(network(images[own]), labels[own], reduction="sum") / ROWS
            loss.backward()  # type: ignore[no-untyped-call]
            all_reduce_gradients([*network.parameters()])
            optimizer.step()
            losses.append(all_reduce(loss))
    assert {type(m) for m in network.modules() if "Norm" in type(m).__name__} == {nn.BatchNorm2d}
    return {**network.state_dict(), "losses": torch.stack(losses)}


def _modes() -> dict[str, Tensor]:
    """What is refused, and what evaluation and autocast see."""
    layer = nn.BatchNorm2d(4)
    rows = torch.randn(2 + distributed.get_rank(), 4, 3, 3)
    with synchronised_batchnorm(layer):
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(rows.bfloat16()).dtype == torch.bfloat16
        layer.eval()
        alone = torch.equal(layer(rows), nn.functional.batch_norm(
            rows, layer.running_mean, layer.running_var, layer.weight, layer.bias
        ))  # fmt: skip
    with pytest.raises(UserError, match="Own cannot be shared"), synchronised_batchnorm(Own(4)):
        pass
    return {"modes": torch.tensor([half, alone])}


class Own(nn.BatchNorm2d):
    """A layer whose forward pass is its own."""


def _everything(own: slice) -> dict[str, dict[str, Tensor]]:
    return {**{name: _layer(name, own) for name in LAYERS}, "network": _network(own)}


def _rank_results(rank: int, _folder: Path) -> dict[str, dict[str, Tensor]]:
    own = slice(0, FIRST) if rank == 0 else slice(FIRST, ROWS)
    return {**_everything(own), "modes": _modes()}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Results of two processes, with 5 and 3 rows of every batch."""
    return on_two_ranks(_rank_results, tmp_path_factory.mktemp("norm"))


@pytest.mark.parametrize("name", [*LAYERS, "network"])
def test_two_processes_are_as_one(name: str, of_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    whole = _everything(slice(None))[name]
    first, second = (process[name] for process in of_ranks)
    for key, expected in whole.items():
        if key.startswith(("out", "gradient")):
            got = torch.cat([first[key], second[key]])
        else:
            got = first[key]
            assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=key)


def test_evaluation_is_plain_and_half_precision_stays(
    of_ranks: list[dict[str, dict[str, Tensor]]],
) -> None:
    for process in of_ranks:
        assert process["modes"]["modes"].all()


def test_one_process_keeps_its_layers() -> None:
    layer = Own(4)
    with synchronised_batchnorm(layer):
        assert type(layer) is Own

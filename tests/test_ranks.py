"""Two processes on CPU: rows are gathered in order, and CRD's state is that of one process."""

import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from compress.methods.crd import Contrast
from compress.ranks import gathered, rank

ROWS, WIDTHS, SHARES, TAU = 20, (6, 9), (5, 3), 0.2


def _steps() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per step of a whole batch: features of both networks, images, drawn rows."""
    generator = torch.Generator().manual_seed(5)
    steps = []
    for _ in range(3):
        features = [torch.randn(sum(SHARES), w, generator=generator) for w in WIDTHS]
        # With repeats among the images, also between the processes.
        images = torch.randint(6, (sum(SHARES),), generator=generator)
        drawn = torch.randint(ROWS, (sum(SHARES), 8), generator=generator)
        steps.append((*features, images, drawn))
    return steps


def _trained(part: slice) -> dict[str, Tensor]:
    torch.manual_seed(0)
    contrast = Contrast(*WIDTHS, 4, ROWS)
    losses = []
    for step in _steps():
        losses.append(contrast(*(tensor[part] for tensor in step), TAU).detach())
        contrast.after_step(0.5)
    return {**contrast.state_dict(), "losses": torch.stack(losses)}


def _process(_: int, number: int, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        assert rank() == number
        found = _trained(slice(0, SHARES[0]) if number == 0 else slice(SHARES[0], None))
        rows = torch.full((SHARES[number], 2), float(number), requires_grad=True)
        found["gathered"] = gathered(rows)
        found["empty"] = gathered(torch.arange(4 * number))
        torch.save(found, f"{folder}/{number}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    other = multiprocessing.spawn(_process, (1, str(tmp_path)), join=False)  # type: ignore[no-untyped-call]
    _process(0, 0, str(tmp_path))
    while not other.join():
        pass
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    for name in set(first) - {"losses"}:
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
    assert first["gathered"].tolist() == [[0, 0]] * 5 + [[1, 1]] * 3
    assert first["empty"].tolist() == [0, 1, 2, 3]
    whole = _trained(slice(None))
    losses = whole.pop("losses")
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value)
    # From the second step on all see the same normalisers and banks.
    shares = zip(SHARES, (first["losses"], second["losses"]), strict=True)
    mean = sum(share * found for share, found in shares) / sum(SHARES)
    torch.testing.assert_close(mean[1:], losses[1:])
    assert not torch.allclose(mean[0], losses[0], rtol=1e-4)


def test_one_process_has_its_own_rows_without_gradient() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert torch.equal(gathered(rows), rows)
    assert not gathered(rows).requires_grad
    assert rank() == 0

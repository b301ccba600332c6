"""Two processes on CPU have what one has: what they exchange, evaluation, and CRD's state."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.data import Batch
from compress.distill import gather_rows
from compress.distributed import collectives
from compress.distributed.collectives import all_gather, all_gather_in_order, rank, sort_by
from compress.errors import UserError
from compress.methods.crd import Contrast
from compress.taps import Taps
from compress.tasks import Classification
from eval.data.batches import KeyedBatches
from eval.detection import detect
from tests.methods import building
from tests.processes import on_two_ranks

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


def _rank_results(number: int, _folder: Path) -> dict[str, Tensor]:
    assert rank() == number
    own = slice(0, SHARES[0]) if number == 0 else slice(SHARES[0], None)
    results = _trained(own)
    rows = torch.full((SHARES[number], 2), float(number), requires_grad=True)
    results["all_gather"] = all_gather(rows)
    results["empty"] = all_gather(torch.arange(4 * number))
    _exchange(number)
    results["loss"], results["coupled weight"] = _coupled(own)
    return results | _in_parts(own) | _evaluated()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = on_two_ranks(_rank_results, tmp_path)
    for name in set(first) - {"losses"}:
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
    assert first["all_gather"].tolist() == [[0, 0]] * 5 + [[1, 1]] * 3
    assert first["empty"].tolist() == [0, 1, 2, 3]
    loss, gradient = _coupled(slice(None))
    torch.testing.assert_close(first["loss"], loss)
    torch.testing.assert_close(first["coupled weight"], gradient)
    for name, value in _in_parts(slice(None)).items():
        assert torch.equal(first[name], value), name
    for name, value in _evaluated().items():
        assert torch.equal(first[name], value), name
    whole = _trained(slice(None))
    losses = whole.pop("losses")
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value)
    # All see the same normalisers and banks.
    shares = zip(SHARES, (first["losses"], second["losses"]), strict=True)
    mean = sum(share * found for share, found in shares) / sum(SHARES)
    torch.testing.assert_close(mean, losses)


def _exchange(number: int) -> None:
    """What each function gives, in each of two processes."""
    assert (collectives.world_size(), collectives.is_main_process()) == (2, number == 0)
    assert [collectives.own_rows(5), collectives.own_rows(1)] == [
        [slice(0, 2), slice(0, 0)], [slice(2, 5), slice(0, 1)]
    ][number]  # fmt: skip
    assert collectives.own_share(1 + 2 * number) == (0.25, 0.75)[number]
    assert collectives.broadcast(("value", number)) == ("value", 0)
    assert collectives.all_gather_items([number] * (1 + number)) == [0, 1, 1]
    counts = torch.tensor([number, 2])
    assert collectives.all_reduce(counts).tolist() == [1, 4]
    assert counts.tolist() == [number, 2]
    # The first process is alone inside: nothing there waits for the other.
    worlds = collectives.on_main_process(
        lambda: (collectives.world_size(), collectives.all_reduce(torch.ones(1)).item(), number)
    )
    assert worlds == (1, 1.0, 0)
    assert collectives.world_size() == 2
    with pytest.raises(UserError, match="said by 0"):
        collectives.on_main_process(lambda: _fail(number))
    read = list[int]
    batches = KeyedBatches[int, read](7, 5, 0, False, lambda index, *_: index, list)
    (own,) = batches.epoch(0)
    assert [len(own), sorted(collectives.all_gather_items(own))[0] >= 0] == [2 + number, True]
    assert len(set(collectives.all_gather_items(own))) == 5
    with pytest.raises(UserError, match="too small for 2 processes"):
        KeyedBatches[int, read](7, 1, 0, False, lambda index, *_: index, list)


def _fail(number: int) -> None:
    raise UserError(f"said by {number}")


def _coupled(part: slice) -> tuple[Tensor, Tensor]:
    """A loss of all rows' relations, and the gradient of the weight that made the rows."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(sum(SHARES), 4, generator=generator, dtype=torch.float64)[part]
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.float64))
    features = collectives.all_gather_with_gradient(rows @ weight)
    loss = (features @ features.mT).sin().mean()
    (loss * collectives.own_share(len(rows))).backward()
    collectives.all_reduce_gradients([weight])
    assert weight.grad is not None
    return loss.detach(), weight.grad


def _in_parts(own: slice) -> dict[str, Tensor]:
    """A queue of a step's rows, and a coupled method's terms, of a batch in three parts."""
    rows = torch.arange(sum(SHARES))
    whole = Batch((rows[:, None].float(),), (rows,), rows % 3, rows + 100, 0, 0, (rows,))
    parts = building.part(whole, slice(own.start or 0, own.stop)).split(3)
    labels, numbers = (
        torch.cat(one) for one in zip(*[(p.index, p.rows) for p in parts], strict=True)
    )
    results = {"queue": all_gather_in_order(labels, numbers)}
    for number, part in enumerate(parts):
        features = part.images[0].requires_grad_()
        taps = Taps(logits=features, pooled=features, own=features)
        if collectives.world_size() > 1:
            views, teachers, part = gather_rows([taps, None], [[taps]], part)
            assert views[1] is None
            assert teachers[0][0] is not None
            assert not teachers[0][0].tensor("own").requires_grad
        else:
            views = [taps]
        assert views[0] is not None
        results[f"part {number}"] = torch.stack([part.index, part.labels, part.view_numbers[0]])
        results[f"features {number}"] = views[0].tensor("own").detach()
        results[f"start {number}"] = torch.tensor([part.start, part.whole])
    return results


class _Means(torch.nn.Module):
    """Logits that say the mean is high; detections at the mean."""

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[dict[str, Tensor]]:
        if isinstance(images, Tensor):
            return torch.stack([-images.mean(1), images.mean(1)], 1)
        # Results that depend on what else is in the batch, as padding makes them.
        return [{"scores": image.mean()[None] + len(images)} for image in images]


class _Image:
    def __init__(self, value: int) -> None:
        self.value = value

    def pixels(self) -> Tensor:
        return torch.full((3, 2, 2), self.value, dtype=torch.uint8)


def _evaluated() -> dict[str, Tensor]:
    """Top-1 of 7 images in batches that the processes share unequally, and detections."""
    generator = torch.Generator().manual_seed(2)
    images, labels = (torch.randn(7, 5, generator=generator), torch.arange(7) % 2)
    batches = [(images[i : i + 3], labels[i : i + 3]) for i in range(0, 7, 3)]
    top1 = Classification().evaluate(_Means(), batches[rank() :: collectives.world_size()])
    pictures = tuple(_Image(i) for i in range(11))
    detections = detect(_Means(), pictures, 4, torch.device("cpu"))  # type: ignore[arg-type]
    scores = torch.cat([one["scores"] for one in detections])
    return {"top1": torch.tensor(top1["top1_percent"]), "scores": scores}


def test_one_process_has_its_own_rows_without_gradient() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert torch.equal(all_gather(rows), rows)
    assert not all_gather(rows).requires_grad
    assert rank() == 0


def test_rows_are_sorted_by_their_numbers_with_their_gradient() -> None:
    rows = torch.tensor([[3.0], [1.0], [2.0]], requires_grad=True)
    ordered = sort_by(torch.tensor([7, 2, 5]))(rows)
    assert ordered.tolist() == [[1], [2], [3]]
    (ordered * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[3], [1], [2]]
    assert sort_by(torch.arange(3))(rows) is rows

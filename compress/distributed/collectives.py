"""The processes of one training: each sees its own part of a batch.

`torch.distributed` is used where it has been initialised (see `compress.run.launch`); one process
alone is rank 0 of 1. Every process must call what exchanges something, in the same order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from compress.errors import UserError

Value = TypeVar("Value")
_alone = False  # inside `on_main_process`


def rank() -> int:
    """The number of this process, counted from 0."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _several() else 1


def is_main_process() -> bool:
    """Tell whether this is the process that writes and logs: rank 0."""
    return rank() == 0


def rows_of_part(count: int, number: int, parts: int) -> slice:
    """The rows of part `number` where `count` are divided: their numbers differ by at most 1."""
    return slice(count * number // parts, count * (number + 1) // parts)


def own_rows(count: int) -> slice:
    """This process's rows of `count`, see `rows_of_part`."""
    return rows_of_part(count, rank(), world_size())


def own_share(count: int) -> float:
    """This process's `count` divided by the sum of every process's; does not wait for the device.

    A mean over this process's rows times its share, added up over the processes, is the mean over
    all rows: what `all_reduce_gradients` then gives is the gradient of that mean.
    """
    return count / float(all_reduce(torch.tensor(count, dtype=torch.float64)))


def barrier() -> None:
    """Wait until every process is here."""
    broadcast(None)


def broadcast(value: Value) -> Value:
    """The first process's value, in every process."""
    if not _several():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_items(items: list[Value]) -> list[Value]:
    """The lists of all processes, one after the other in the order of their ranks."""
    if not _several():
        return items
    lists: list[list[Value]] = [[] for _ in range(world_size())]
    distributed.all_gather_object(lists, items)
    return [item for items in lists for item in items]


def on_main_process(action: Callable[[], Value]) -> Value:
    """Run `action` in the first process; every process gets what it returns.

    Inside `action` the first process is alone, so that whatever one process can do it can do there.
    Where it raises a UserError or SystemExit, every process does.
    """
    values: list[Value] = []
    error: UserError | SystemExit | None = None
    if is_main_process():
        try:
            with _without_others():
                values.append(action())
        except (UserError, SystemExit) as raised:
            error = raised
    values, error = broadcast((values, error))
    if error is not None:
        raise error
    return values[0]


@contextmanager
def _without_others() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def all_gather(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes in the order of their ranks, without gradient.

    The processes may have different numbers of rows. With one process the result is its own rows.
    """
    return _all_gather(rows)[0]


def all_gather_with_gradient(rows: Tensor) -> Tensor:
    """`all_gather`, whose gradient on the own rows is the sum of that of every process."""
    if not _several():
        return rows
    everyones: Tensor = _AllGather.apply(rows)
    return everyones


def all_gather_in_order(rows: Tensor, numbers: Tensor) -> Tensor:
    """`all_gather`, sorted by the number of each row: the order in which one process has them.

    Args:
        rows: (N, ...).
        numbers: (N,) on the CPU, for images `Batch.rows`; no two of all processes are equal.
    """
    return sort_by(all_gather(numbers))(all_gather(rows))


def sort_by(numbers: Tensor) -> Callable[[Tensor], Tensor]:
    """Sorts rows as it does `numbers` (N,), which are on the CPU, so nothing waits for a device."""
    order = numbers.argsort(stable=True)
    if torch.equal(order, torch.arange(len(order))):
        return lambda rows: rows
    return lambda rows: rows[order.to(rows.device)]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyones, ctx.own = _all_gather(rows)
        return everyones

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient)[ctx.own]


def _all_gather(rows: Tensor) -> tuple[Tensor, slice]:
    """The rows of all processes, and which of them are this one's."""
    rows = rows.detach()
    if not _several():
        return rows, slice(0, len(rows))
    # The numbers go by way of the CPU: nothing waits for the device.
    numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(numbers, torch.tensor([len(rows)]))
    counts = [int(number) for number in numbers]
    # Every process must send the same shape.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    first = sum(counts[: rank()])
    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return whole, slice(first, first + len(rows))


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient."""
    # In one order of the elements everywhere, whatever their order in memory is.
    values = values.detach().clone(memory_format=torch.contiguous_format)
    if _several():
        distributed.all_reduce(values)
    return values


def all_reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make every process's gradients the sum of all, in one exchange.

    A step's loss must then be each process's share of it, see `own_share`. Which parameters have a
    gradient must be the same in every process.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not _several() or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in gradients])
    for gradient, own in zip(gradients, parts, strict=True):
        gradient.copy_(own.view_as(gradient))


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and not _alone

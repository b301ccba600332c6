"""Rows of all processes for a method whose loss relates the images of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from compress.data.batch import Batch
from compress.distributed.collectives import all_gather, all_gather_with_gradient, sort_by
from compress.methods.contract import Views


def gather_rows(
    student: Views, teachers: Sequence[Views], batch: Batch
) -> tuple[Views, list[Views], Batch]:
    """Return what a coupled method reads, with all processes' rows in the order of one process.

    Every process then has the same terms; the student's own rows get the gradient of them all.
    """
    numbers = all_gather(batch.rows)
    in_order = sort_by(numbers)

    def constant(rows: Tensor) -> Tensor:
        return in_order(all_gather(rows))

    def learned(rows: Tensor) -> Tensor:
        return in_order(all_gather_with_gradient(rows))

    def views(taps: Views, gather: Callable[[Tensor], Tensor]) -> Views:
        return [one.map(gather) if one is not None else None for one in taps]

    whole = replace(
        batch,
        images=(),
        view_ids=tuple(map(constant, batch.view_ids)),
        view_numbers=tuple(map(constant, batch.view_numbers)),
        labels=constant(batch.labels),
        index=constant(batch.index),
        start=int(numbers.min()),
        observed={name: constant(rows) for name, rows in batch.observed.items()},
    )
    return views(student, learned), [views(teacher, constant) for teacher in teachers], whole

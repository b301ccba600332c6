"""Batch norm over the rows of all processes: statistics and gradients as one process has them.

torch's SyncBatchNorm does so on GPUs and refuses the CPU, which has an equivalent here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.distributed.collectives import all_reduce, world_size
from compress.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synchronised_batchnorm(network: nn.Module) -> Iterator[None]:
    """Inside the block the batch norms of a network see all processes' rows while they train.

    They change in place and back again: names, parameters, buffers, hooks, and graphs that were
    traced before and share them stay as they are. Nothing changes for one process.

    Raises:
        UserError: a batch norm is of a class of its own, whose arithmetic is not known.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)] if world_size() > 1 else []
    kinds = [type(norm) for norm in norms]
    for kind in kinds:
        if kind not in _PLAIN:
            raise UserError(
                f"batch norm of class {kind.__module__}.{kind.__qualname__} cannot be shared by "
                "several processes; train this network with one"
            )
    try:
        for norm in norms:
            norm.__class__ = _AcrossProcesses
            vars(norm)["process_group"] = None  # of all processes
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
            vars(norm).pop("process_group", None)


class _AcrossProcesses(nn.SyncBatchNorm):
    """torch's layer on GPUs and outside training; on the CPU, ours."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """(N, C, ...) -> the same shape and dtype."""
        if input.is_cuda or not self.training:
            return super().forward(input)
        trained: Tensor = _train(self, input)
        return trained


@torch.compiler.disable  # type: ignore[untyped-decorator]  # exchanges are no part of a graph
def _train(norm: nn.SyncBatchNorm, rows: Tensor) -> Tensor:
    normalised, mean, variance, count = _Normalised.apply(rows, norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        _track(norm, mean, variance * count / (count - 1))
    return normalised  # type: ignore[no-any-return]


@torch.no_grad()
def _track(norm: nn.SyncBatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics; a momentum of None is their mean over all steps."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for running, seen in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.mul_(1 - share).add_(seen.to(running.dtype), alpha=share)


class _Normalised(torch.autograd.Function):
    """Normalised rows, and without gradient mean (C,), biased variance (C,) and count of values."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = rows if rows.element_size() >= 4 else rows.float()
        dims = _all_but_channels(wide)
        own = torch.tensor(wide.numel() // wide.shape[1], dtype=torch.float64)
        # Squares of float32 are exact in float64, and so almost is their sum's small difference.
        variance, mean = (t.double() for t in torch.var_mean(wide, dims, correction=0))
        moments = torch.stack([own.expand_as(mean), own * mean, own * (variance + mean**2)])
        count, first, second = all_reduce(moments)
        if count[0] <= 1:
            raise ValueError("batch norm needs more than one value per channel when training")
        mean, variance = first / count, (second / count - (first / count) ** 2).clamp(min=0)
        deviation = (variance + eps).rsqrt().to(wide.dtype)
        standard = (wide - _column(mean.to(wide.dtype), wide)) * _column(deviation, wide)
        ctx.save_for_backward(standard, weight, deviation)
        ctx.count, ctx.dtype, ctx.has_bias = count.to(wide.dtype), rows.dtype, bias is not None
        scaled = standard if weight is None else standard * _column(weight, wide)
        shifted = scaled if bias is None else scaled + _column(bias, wide)
        ctx.mark_non_differentiable(mean, variance, count)
        return shifted.to(rows.dtype), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        standard, weight, deviation = ctx.saved_tensors
        gradient = gradient.to(standard.dtype)
        dims = _all_but_channels(standard)
        own = torch.stack([gradient.sum(dims), (gradient * standard).sum(dims)])
        shift, tilt = all_reduce(own) / ctx.count
        inner = gradient - _column(shift, standard) - standard * _column(tilt, standard)
        scale = deviation if weight is None else deviation * weight
        # The affine parameters' gradients are summed over the processes with all others.
        return (
            (inner * _column(scale, standard)).to(ctx.dtype),
            None if weight is None else own[1].to(weight.dtype),
            own[0].to(deviation.dtype) if ctx.has_bias else None,
            None,
        )


def _all_but_channels(rows: Tensor) -> list[int]:
    return [d for d in range(rows.dim()) if d != 1]


def _column(values: Tensor, rows: Tensor) -> Tensor:
    """(C,) in a shape that is broadcast over (N, C, ...)."""
    return values.view(1, -1, *[1] * (rows.dim() - 2))

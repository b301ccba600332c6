"""Multiply-adds of a network, counted as the distillation papers count them.

One multiply-add of a convolution or a linear layer is one MAC; biases, batch norm, activations
and pooling are not counted (fvcore's own total adds batch norm and pooling). FLOPs, where a table
shows them, are 2 x MACs. Products of two activations (attention, matmul) are not counted either,
as the papers' tables leave them out: their calls are listed in `uncounted`, so that a reader sees
that the number is incomplete.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.accounting.probing import blank_images, evaluating

# fvcore's names of the operators that are convolutions or linear layers; it calls every
# convolution `conv`, and a linear layer is traced as `linear` or, by older torch, as `addmm`.
COUNTED = ("conv", "addmm", "linear")

# Operators that multiply and that no convolution or linear layer stands for.
UNCOUNTED = (
    "aten::matmul",
    "aten::mm",
    "aten::mv",
    "aten::dot",
    "aten::bmm",
    "aten::baddbmm",
    "aten::einsum",
    "aten::bilinear",
    "aten::scaled_dot_product_attention",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
    "aten::lstm",
    "aten::gru",
    "aten::rnn_tanh",
    "aten::rnn_relu",
    "torchvision::deform_conv2d",
)


@dataclass(frozen=True)
class MacCount:
    """`macs` is the sum over `by_operator`; `uncounted` is operator name -> number of calls."""

    macs: int
    by_operator: dict[str, int]
    uncounted: dict[str, int]


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> MacCount:
    """MACs of one forward of a single image.

    Args:
        module: network that takes (N, C, H, W); it runs in eval mode and is left as it was.
        input_shape: (C, H, W).
    """
    images = blank_images(module, input_shape, batch=1)
    with _quiet_fvcore(), evaluating(module), _slow_attention(), torch.no_grad():
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, images)
        analysis.set_op_handle(**{name: _one_call for name in UNCOUNTED})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        counts = analysis.by_operator()
    by_operator = {name: int(counts[name]) for name in COUNTED if counts[name]}
    names = sorted(name.split("::")[1] for name in UNCOUNTED)
    uncounted = {name: int(counts[name]) for name in names if counts[name]}
    return MacCount(sum(by_operator.values()), by_operator, uncounted)


def _one_call(inputs: list[Any], outputs: list[Any]) -> int:
    """An operator handle for fvcore that counts calls instead of operations."""
    return 1


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep attention layers out of their fused kernel, which would hide their linear layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet_fvcore() -> Iterator[None]:
    """fvcore uses torch.jit, which says at import and at each trace that it is deprecated."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"torch\.jit\.")
        yield

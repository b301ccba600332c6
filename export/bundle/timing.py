"""Latency of a student in each runtime: torch, torch.compile, ONNX Runtime, its int8 file.

One protocol for all of them (`compress.accounting.measure_latency`), interleaved, on the CPU with
one number of threads.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from compress.accounting import measure_latency, protocol
from compress.onnx.files import open_session, run_session, takes_pixels
from compress.recipe.schema import LatencyPart

_CPU = torch.device("cpu")
TORCH, COMPILED, ORT, ORT_INT8 = "torch", "torch.compile", "ONNX Runtime", "ONNX Runtime, int8"
ORT_TEACHER = "ONNX Runtime, teacher"


def time_runtimes(
    network: nn.Module,
    files: dict[str, Path],
    input_shape: tuple[int, int, int],
    settings: LatencyPart,
    *,
    compiled: bool,
) -> dict[str, Any]:
    """Milliseconds per call of every runtime at every batch size.

    Args:
        network: the deployed network, batch norm folded, on the CPU.
        files: runtime -> ONNX file; each gets images of its own size.
        input_shape: (C, H, W) of the network's images.
        compiled: also time torch.compile, if it works on this machine.

    Returns:
        `latency` (runtime -> batch size -> median, p95, rounds), `protocol`, and
        `not_compiled`: why torch.compile is missing, or None.
    """
    sessions = {name: open_session(path) for name, path in files.items()}
    candidates: dict[str, Callable[[torch.Tensor], object]] = {TORCH: network}
    reason: str | None = None if compiled else "not asked for"
    if compiled:
        fast, reason = _compile(network, input_shape, settings.batch_sizes)
        if fast is not None:
            candidates[COMPILED] = fast
    latency: dict[str, dict[str, Any]] = {name: {} for name in (*candidates, *sessions)}
    for batch in settings.batch_sizes:
        images = torch.zeros(batch, *input_shape)
        calls: dict[str, Callable[[], object]] = {
            name: partial(_infer, module, images) for name, module in candidates.items()
        }
        for name, session in sessions.items():
            calls[name] = partial(run_session, session, _zeros(session, batch, input_shape))
        measurements = measure_latency(calls, warmup=settings.warmup, rounds=settings.rounds)
        for name, measurement in measurements.items():
            latency[name][str(batch)] = measurement.as_dict()
    return {
        "latency": latency,
        "protocol": protocol(_CPU, warmup=settings.warmup, rounds=settings.rounds),
        "not_compiled": reason,
    }


def _zeros(
    session: onnxruntime.InferenceSession, batch: int, input_shape: tuple[int, int, int]
) -> NDArray[Any]:
    """A blank batch of the form and size that the file takes; of `input_shape` if of any size."""
    raw = takes_pixels(session)
    sizes = dict(zip(("height", "width"), input_shape[1:], strict=True))
    shape = [sizes.get(side, side) for side in session.get_inputs()[0].shape[1:]]
    return np.zeros((batch, *shape), np.uint8 if raw else np.float32)


def _infer(module: Callable[[torch.Tensor], object], images: torch.Tensor) -> object:
    with torch.inference_mode():
        return module(images)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Silence the compiler's message that it found no GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _compile(
    network: nn.Module, input_shape: tuple[int, int, int], batch_sizes: Sequence[int]
) -> tuple[Callable[[torch.Tensor], object] | None, str | None]:
    """Compile the network, or say why not (no C++ compiler, a graph that cannot be traced)."""
    try:
        with warnings.catch_warnings(), _quiet_compiler():
            warnings.simplefilter("ignore")  # torch's own, about itself
            fast = torch.compile(network, dynamic=False)
            for batch in batch_sizes:
                _infer(fast, torch.zeros(batch, *input_shape))
    except Exception as error:  # inductor and dynamo share no base class
        lines = str(error).strip().splitlines() or ["no reason given"]
        return None, f"{type(error).__name__}: {lines[0]}"
    return fast, None

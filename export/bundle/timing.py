"""How long a student takes in each runtime: torch, torch.compile, ONNX Runtime, its int8 file.

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
from compress.recipe.schema import Latency as Asked

_CPU = torch.device("cpu")
TORCH, COMPILED, ORT, ORT_INT8 = "torch", "torch.compile", "ONNX Runtime", "ONNX Runtime, int8"


def time_runtimes(
    network: nn.Module,
    files: dict[str, Path],
    input_shape: tuple[int, int, int],
    asked: Asked,
    *,
    compiled: bool,
) -> dict[str, Any]:
    """Milliseconds per call of every runtime at every batch size.

    Args:
        network: what ships, batch norm folded, on the CPU.
        files: runtime -> ONNX file.
        input_shape: (C, H, W).
        compiled: also torch.compile, where it works here.

    Returns:
        `latency` (runtime -> batch size -> median, p95, rounds), `protocol`, and
        `not_compiled`: why torch.compile is missing, or None.
    """
    sessions = {name: open_session(path) for name, path in files.items()}
    candidates: dict[str, Callable[[torch.Tensor], object]] = {TORCH: network}
    reason: str | None = None if compiled else "not asked for"
    if compiled:
        fast, reason = _compile(network, input_shape, asked.batch_sizes)
        if fast is not None:
            candidates[COMPILED] = fast
    latency: dict[str, dict[str, Any]] = {name: {} for name in (*candidates, *sessions)}
    for batch in asked.batch_sizes:
        images = torch.zeros(batch, *input_shape)
        calls: dict[str, Callable[[], object]] = {
            name: partial(_infer, module, images) for name, module in candidates.items()
        }
        for name, session in sessions.items():
            calls[name] = partial(run_session, session, _zeros(session, batch, input_shape))
        found = measure_latency(calls, warmup=asked.warmup, rounds=asked.rounds)
        for name, one in found.items():
            latency[name][str(batch)] = one.as_dict()
    told = protocol(_CPU, warmup=asked.warmup, rounds=asked.rounds)
    return {"latency": latency, "protocol": told, "not_compiled": reason}


def _zeros(
    session: onnxruntime.InferenceSession, batch: int, input_shape: tuple[int, int, int]
) -> NDArray[Any]:
    """What the file takes."""
    channels, height, width = input_shape
    if takes_pixels(session):
        return np.zeros((batch, height, width, channels), np.uint8)
    return np.zeros((batch, *input_shape), np.float32)


def _infer(module: Callable[[torch.Tensor], object], images: torch.Tensor) -> object:
    with torch.inference_mode():
        return module(images)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """The compiler logs that it found no GPU, which nobody asked."""
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
    """The network compiled, or why it cannot be (no C++ compiler, a graph it cannot follow)."""
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

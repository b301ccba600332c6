"""torch.compile where it pays: the student's forward and backward in fewer, larger pieces."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from compress.console.messages import log
from compress.distributed.collectives import world_size
from compress.taps import TappedForward, Taps, TapSpecs
from compress.taps.graph import GraphForward, TappedGraph, Untraceable

# Below so much work a run ends before compiling (20 to 60 s of it) has paid: on two CPU cores it
# saves about 15 % of 1.5e11 multiply-adds a second, on a GPU what a step costs to be launched.
_LEAST_MACS = 1e14
_LEAST_STEPS = 10_000


def compiling_pays(
    wish: Literal["auto", "always", "never"],
    device: torch.device,
    *,
    macs: Callable[[], float],
    steps: int,
) -> bool:
    """Decide whether to compile networks that are run for `macs()` multiply-adds in `steps` steps.

    `auto`: where each process's share of the run is long enough, and on CPU a C++ compiler is
    there. Depends on nothing that a continued run would find changed but the number of processes.
    """
    if wish != "auto":
        return wish == "always"
    if device.type == "cuda":
        return steps >= _LEAST_STEPS
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    return has_compiler and macs() / world_size() >= _LEAST_MACS


def compile_taps(
    network: nn.Module,
    specs: TapSpecs,
    wanted: Sequence[str],
    name: str,
    *,
    wish: Literal["auto", "always", "never"],
    rows: int | None = None,
) -> "CompiledTaps | None":
    """The taps of a network that learns, compiled; None, and a line in the log, where none can be.

    `auto`: nor where several processes on CPUs exchange statistics at each batch norm, which leaves
    the compiler little to join. The network is put in training mode. `rows`: see `CompiledTaps`.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if wish == "auto" and on_cpu and world_size() > 1:
        pieces = f"batch norm across {world_size()} processes breaks it in pieces"
        log(f"  {name}: runs uncompiled: {pieces}")
        return None
    log(f"  {name}: is compiled, which takes up to a minute")
    try:
        return CompiledTaps(TappedGraph(network.train(), specs, wanted), name, rows=rows)
    except Untraceable as reason:
        log(f"  {name}: runs uncompiled: {reason}")
        return None


class ForUsualBatch:
    """A compiled network for batches of the usual size, and the same uncompiled for all others.

    Where compiling fails, which the first usual batch shows, all run uncompiled.
    """

    def __init__(
        self,
        compiled: TappedForward,
        plain: TappedForward,
        *,
        rows: int | None,
        report: Callable[[str], None],
    ) -> None:
        """The usual size is `rows`, or the first batch's.

        `report` is called with the reason where compiling fails.
        """
        self._compiled: TappedForward | None = compiled
        self._plain = plain
        self._rows = rows
        self._report = report
        self._shape: tuple[int, ...] | None = None
        self._is_tried = False

    def __call__(self, images: Tensor) -> Taps:
        """The taps of normalised images (N, 3, H, W)."""
        if self._shape is None:
            self._rows = self._rows or len(images)
            self._shape = (self._rows, *images.shape[1:])
        if self._compiled is None or images.shape != self._shape:
            return self._plain(images)
        is_first, self._is_tried = not self._is_tried, True
        try:
            return self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and their backends raise whatever they like
            if not is_first:
                raise
            self._compiled = None
            self._report(f"torch.compile failed here ({_reason_of(error)})")
            return self._plain(images)

    def rows(self) -> int | None:
        """Images that the compiled network takes at once; None where none is compiled."""
        return self._rows if self._compiled is not None else None


class CompiledTaps(ForUsualBatch):
    """`TappedGraph` of a network that learns, compiled for batches of `rows` images."""

    def __init__(self, tapped: TappedGraph, name: str, *, rows: int | None = None) -> None:
        on_gpu = next(tapped.graph.parameters()).is_cuda
        # CUDA graphs: a small network's kernels take less time than launching them one by one.
        mode = "reduce-overhead" if on_gpu else None
        compiled = torch.compile(tapped.graph, dynamic=False, mode=mode)
        super().__init__(
            GraphForward(compiled, tapped.read),
            tapped,
            rows=rows,
            report=partial(_log_uncompiled, name),
        )


def _log_uncompiled(name: str, reason: str) -> None:
    log(f"  {name}: runs uncompiled, {reason}")


def _reason_of(error: Exception) -> str:
    """A compiler's first two lines, since the first often names only the backend."""
    return " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__

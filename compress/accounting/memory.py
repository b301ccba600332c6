"""Peak memory of the tensors in one forward, or in one step of training."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.accounting.probing import blank_images, evaluating


def peak_activation_bytes(module: nn.Module, input_shape: tuple[int, int, int], batch: int) -> int:
    """Largest number of bytes of intermediate tensors alive at once in one eager forward.

    Counted after every operator, when its inputs and its output are alive together: each tensor
    that the forward creates, the output included, once per storage (a view adds nothing).
    Parameters, buffers and the input batch, which belong to the caller, are not counted, nor is
    the workspace inside an operator's kernel.

    Args:
        module: network that takes (N, C, H, W); it runs in eval mode and is left as it was.
        input_shape: (C, H, W).
        batch: number of images.
    """
    images = blank_images(module, input_shape, batch)
    outside = [images, *module.parameters(), *module.buffers()]
    with evaluating(module), torch.no_grad():
        return peak_step_bytes(lambda: module(images), outside)


def peak_step_bytes(step: Callable[[], object], outside: Iterable[Tensor]) -> int:
    """Largest number of bytes of tensors alive at once while `step` runs, backward included.

    Counted as `peak_activation_bytes` does, now with what is kept for the backward pass and with
    the gradients. A step whose parameters have gradients already adds to those, and they count
    from then on.

    Args:
        step: what to watch; eager, as operators of a compiled graph are not seen one by one.
        outside: what belongs to the caller and is not counted: parameters, buffers, the batch.
    """
    meter = _Meter(outside)
    with meter:
        step()
    return meter.peak


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operator and keeps the sum of the bytes of the storages that are alive."""

    def __init__(self, outside: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._outside = {t.untyped_storage()._cdata for t in outside}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._outside:
            return
        self._alive[key] = storage.nbytes()
        # Runs when the last tensor on this storage is gone, before its address is used again.
        weakref.finalize(storage, self._alive.pop, key, None)

"""A teacher that no longer changes, made fast: the same taps, up to rounding, for less time.

What lies past the last wanted tap is taken out, batch norm is folded into the convolutions, maps
lie in memory channels last, and where asked for the rest is compiled and computed in bfloat16.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from compress.compiled import reason_of
from compress.console import log
from compress.models.folding import Folded, fold_batchnorm
from compress.tapped_graph import Arrangement, TappedGraph, Untraceable
from compress.taps import Tapped, Taps, TapSpecs

Precision = Literal["float32", "bfloat16"]
Show: TypeAlias = Callable[[Tensor], Taps]
_NAMED = 3  # modules that a remark names before it only counts them


class Frozen:
    """Normalised images (N, 3, H, W) -> taps in float32, without gradient; made by `freeze`.

    Not in inference mode: autograd refuses to save its tensors for a student's backward pass.
    The maps may be channels last in memory: they take `reshape` and `flatten`, not always `view`.
    """

    def __init__(
        self,
        body: nn.Module,
        show: Show,
        compiled: Show | None,
        *,
        precision: Precision,
        rows: int | None,
        name: str,
        remark: str,
    ) -> None:
        """Run `compiled` on batches of `rows` images, `show` on others, both of `body`."""
        self._body = body.to(memory_format=torch.channels_last)
        self._show = show
        self._compiled = compiled
        self._precision = precision
        self._rows = rows
        self._name = name
        self._layout = torch.channels_last
        self._shape: tuple[int, ...] | None = None  # of the batches that `compiled` takes
        self._is_tried = False
        self._remarks = [remark]

    def __call__(self, images: Tensor) -> Taps:
        """Compute the taps; only the first batch of the usual size ever compiles anything."""
        mixed = self._precision == "bfloat16"
        autocast = torch.autocast(images.device.type, torch.bfloat16) if mixed else nullcontext()
        with torch.no_grad(), autocast:
            if self._shape is None:
                self._settle_layout(images[:2])
                self._rows = self._rows or len(images)
                self._shape = (self._rows, *images.shape[1:])
            taps = self._run(images)
        return taps.map(Tensor.float)

    def compiled_rows(self) -> int | None:
        """How many images the compiled network takes at once; None where none is compiled."""
        return self._rows if self._compiled is not None else None

    def remarks(self) -> list[str]:
        """What was done to the network and what could not be done, in plain sentences."""
        return [f"{self._name}: {remark}" for remark in self._remarks]

    def _run(self, images: Tensor) -> Taps:
        images = images.contiguous(memory_format=self._layout)
        if self._compiled is None or images.shape != self._shape:
            return self._show(images)
        if self._is_tried:
            return self._compiled(images)
        self._is_tried = True
        try:
            return self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and their backends raise whatever they like
            self._compiled = None
            self._tell(f"not compiled, torch.compile failed here ({reason_of(error)})")
            return self._show(images)

    def _settle_layout(self, images: Tensor) -> None:
        try:
            self._run(images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # most likely a `view` of a map
            self._layout = torch.contiguous_format
            self._body.to(memory_format=self._layout)
            self._run(images)  # an error of another kind comes again
            self._tell("maps stay contiguous, since it does not run with channels last")

    def _tell(self, remark: str) -> None:
        self._remarks.append(remark)
        log(f"{self._name}: {remark}")


def freeze(
    network: nn.Module,
    specs: TapSpecs,
    wanted: Sequence[str],
    *,
    compile: bool,  # noqa: A002
    precision: Precision,
    rows: int | None = None,
    name: str = "teacher",
) -> Frozen:
    """A fast copy of `network` in eval mode that shows the wanted taps; `network` stays as it is.

    A network that torch.fx cannot trace runs whole and uncompiled, with hooks.

    Args:
        wanted: kinds or dotted module paths, as `Tapped` takes them.
        compile: for batches of `rows` images; where that fails, one sentence says so.
        precision: that of convolutions and matrix products (autocast); taps are float32.
        rows: how many images a batch usually has; default: as many as the first one.
        name: what remarks call it.

    Raises:
        UserError: the network has no such module, or no such place.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    compiled: Show | None = None
    try:
        tapped = TappedGraph(copied, specs, wanted)
    except Untraceable as reason:
        body: nn.Module = copied
        show: Show = Tapped(copied, specs, wanted)
        remark = f"runs whole, with hooks, unfolded and uncompiled: {reason}"
    else:
        folded = fold_batchnorm(tapped.graph)
        body, arranged = folded.network, tapped.arranged
        remark = _done(folded, tapped.skipped)
        show = _chain(body.forward, arranged)  # __call__ would print errors that are expected
        compiled = _chain(_compiled(body), arranged) if compile else None
    return Frozen(body, show, compiled, precision=precision, rows=rows, name=name, remark=remark)


def _chain(run: Callable[[Tensor], Sequence[Tensor]], arranged: Arrangement) -> Show:
    return lambda images: arranged(run(images))


def _compiled(body: nn.Module) -> Callable[[Tensor], Sequence[Tensor]]:
    on_cpu = all(p.device.type == "cpu" for p in body.parameters())
    # Weights as constants: on a CPU they are laid out once as its kernels read them.
    return torch.compile(body, dynamic=False, options={"freezing": True} if on_cpu else None)


def _done(folded: Folded, skipped: Sequence[str]) -> str:
    """What became of batch norms and of the modules past the last tap."""
    norms, left = len(folded.folded), len(folded.not_folded)
    text = f"{norms} batch norms are folded" + (f", {left} are not" if left else "")
    if not skipped:
        return text
    more = len(skipped) - _NAMED
    named = ", ".join(skipped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{text}; not run: {named}"


def difference(fast: Show, plain: Tapped, images: Tensor) -> dict[str, float]:
    """How far the taps of `fast` are from those of `plain`, in eval mode, on normalised images.

    Returns:
        For each tap that `fast` shows (kind or path) the largest absolute difference over the
        largest absolute value; `same_class_percent` of the images, where there are logits.
    """
    with torch.no_grad():
        found, expected = _by_tap(fast(images)), _by_tap(plain(images))
    result = {}
    for tap, maps in found.items():
        pairs = zip(maps, expected[tap], strict=True)
        result[tap] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if "logits" in result:
        same = found["logits"][0].argmax(1) == expected["logits"][0].argmax(1)
        result["same_class_percent"] = 100 * float(same.float().mean())
    return result


def _by_tap(taps: Taps) -> dict[str, list[Tensor]]:
    shown = {name: value for name, value in vars(taps).items() if name != "paths"} | taps.paths
    several = {k: v if isinstance(v, list) else [v] for k, v in shown.items() if v is not None}
    return {name: maps for name, maps in several.items() if maps}

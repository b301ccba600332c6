"""A teacher that no longer changes, made fast: the same taps, up to rounding, for less time.

What lies past the last wanted tap is taken out, batch norm is folded into the convolutions, maps
lie in memory channels last, and where asked for the rest is compiled and computed in bfloat16.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from compress.console.messages import log
from compress.engine.compiling import ForUsualBatch
from compress.models.folding import Folded, fold_batchnorm
from compress.taps import Tapped, TappedForward, Taps, TapSpecs
from compress.taps.graph import GraphForward, TappedGraph, Untraceable

Precision = Literal["float32", "bfloat16"]
_NAMED = 3  # modules that a note names before it only counts them


class FastTeacher:
    """Normalised images (N, 3, H, W) -> taps in float32, without gradient; made by `make_fast`.

    Not in inference mode: autograd refuses to save its tensors for a student's backward pass.
    The maps may be channels last in memory: they take `reshape` and `flatten`, not always `view`.
    """

    def __init__(
        self,
        body: nn.Module,
        show: TappedForward,
        compiled: TappedForward | None,
        *,
        precision: Precision,
        rows: int | None,
        name: str,
        note: str,
    ) -> None:
        """Run `compiled` on batches of `rows` images, `show` on others, both of `body`."""
        self._body = body.to(memory_format=torch.channels_last)
        self._show = show
        self._compiled: ForUsualBatch | None = None
        if compiled is not None:
            self._compiled = ForUsualBatch(
                compiled, show, rows=rows, report=self._report_uncompiled
            )
        self._precision = precision
        self._name = name
        self._layout: torch.memory_format | None = None  # the first batch shows which
        self._notes = [note]

    def __call__(self, images: Tensor) -> Taps:
        """Compute the taps; only the first batch of the usual size ever compiles anything."""
        mixed = self._precision == "bfloat16"
        autocast = torch.autocast(images.device.type, torch.bfloat16) if mixed else nullcontext()
        with torch.no_grad(), autocast:
            if self._layout is None:
                self._layout = self._settled(images[:2])
            laid = images.contiguous(memory_format=self._layout)
            taps = (self._compiled or self._show)(laid)
        return taps.map(Tensor.float)

    def compiled_rows(self) -> int | None:
        """Images that the compiled network takes at once; None where none is compiled."""
        return self._compiled.rows() if self._compiled is not None else None

    def notes(self) -> list[str]:
        """Sentences on what was done to the network and what could not be done."""
        return [f"{self._name}: {note}" for note in self._notes]

    def _settled(self, images: Tensor) -> torch.memory_format:
        """Choose how maps lie in memory: channels last, where the network runs so."""
        try:
            self._show(images.contiguous(memory_format=torch.channels_last))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # most likely a `view` of a map
            self._body.to(memory_format=torch.contiguous_format)
            self._show(images.contiguous())  # an error of another kind comes again
            self._report("maps stay contiguous, since it does not run with channels last")
            return torch.contiguous_format
        return torch.channels_last

    def _report_uncompiled(self, reason: str) -> None:
        self._report(f"not compiled, {reason}")

    def _report(self, note: str) -> None:
        self._notes.append(note)
        log(f"{self._name}: {note}")


def make_fast(
    network: nn.Module,
    specs: TapSpecs,
    wanted: Sequence[str],
    *,
    compile: bool,  # noqa: A002
    precision: Precision,
    rows: int | None = None,
    name: str = "teacher",
) -> FastTeacher:
    """Make a fast copy of `network` in eval mode with the wanted taps; `network` stays as it is.

    A network that torch.fx cannot trace runs whole and uncompiled, with hooks.

    Args:
        wanted: kinds or dotted module paths, as `Tapped` takes them.
        compile: for batches of `rows` images; where that fails, one sentence says so.
        precision: that of convolutions and matrix products (autocast); taps are float32.
        rows: how many images a batch usually has; default: as many as the first one.
        name: what notes call it.

    Raises:
        UserError: the network has no such module, or no such place.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    compiled: TappedForward | None = None
    try:
        tapped = TappedGraph(copied, specs, wanted)
    except Untraceable as reason:
        body: nn.Module = copied
        show: TappedForward = Tapped(copied, specs, wanted)
        note = f"runs whole, with hooks, unfolded and uncompiled: {reason}"
    else:
        folded = fold_batchnorm(tapped.graph)
        body = folded.network
        note = _done(folded, tapped.skipped)
        show = GraphForward(
            body.forward, tapped.read
        )  # __call__ would print errors that are expected
        compiled = GraphForward(_compiled(body), tapped.read) if compile else None
    return FastTeacher(body, show, compiled, precision=precision, rows=rows, name=name, note=note)


def _compiled(body: nn.Module) -> Callable[[Tensor], Sequence[Tensor]]:
    on_cpu = all(p.device.type == "cpu" for p in body.parameters())
    # Weights as constants: on a CPU they are laid out once as its kernels read them.
    return torch.compile(body, dynamic=False, options={"freezing": True} if on_cpu else None)


def _done(folded: Folded, skipped: Sequence[str]) -> str:
    """Say what became of batch norms and of the modules past the last tap."""
    norms, left = len(folded.folded), len(folded.not_folded)
    text = f"{norms} batch norms are folded" + (f", {left} are not" if left else "")
    if not skipped:
        return text
    more = len(skipped) - _NAMED
    named = ", ".join(skipped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{text}; not run: {named}"


def measure_tap_differences(fast: TappedForward, exact: Tapped, images: Tensor) -> dict[str, float]:
    """Measure how far the taps of `fast` are from those of `exact`, on normalised images.

    Returns:
        For each tap of `fast` (kind or path) the largest absolute difference over the
        largest absolute value; `same_class_percent` of the images, where there are logits.
    """
    with torch.no_grad():
        taps, expected = _by_tap(fast(images)), _by_tap(exact(images))
    result = {}
    for tap, maps in taps.items():
        pairs = zip(maps, expected[tap], strict=True)
        result[tap] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if "logits" in result:
        same = taps["logits"][0].argmax(1) == expected["logits"][0].argmax(1)
        result["same_class_percent"] = 100 * float(same.float().mean())
    return result


def _by_tap(taps: Taps) -> dict[str, list[Tensor]]:
    several = {kind: tap if isinstance(tap, list) else [tap] for kind, tap in taps.items()}
    return {kind: tensors for kind, tensors in several.items() if tensors}

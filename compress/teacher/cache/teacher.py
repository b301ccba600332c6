"""A teacher that looks into its cache before it looks at the images."""

from collections.abc import Callable, Mapping, Sequence
from threading import Thread

import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.data.reader import EpochPlan
from compress.taps import TappedForward, Taps
from compress.teacher.cache.rows import OutputCache

# Share of a batch that must be missing before all of it is given to a teacher that is compiled for
# whole batches: two CPU cores took 313 ms for 64 images compiled and 407 ms uncompiled.
_MOSTLY = 313 / 407


class CachedTeacher:
    """A teacher that runs only on images whose outputs its cache does not hold.

    A batch that was stored whole comes back with the very bits that the network gave, in the
    cache's type; what is stored is also what is returned on the first visit, so that no result
    depends on what happened to be there, but for this: networks may round a part of a batch
    differently than all of it. On CUDA, index and outputs pass through the CPU, so that every
    step waits for the device.
    """

    def __init__(
        self,
        network: TappedForward,
        caches: Mapping[int, OutputCache],
        kinds: Sequence[str],
        output: torch.dtype = torch.float32,
        plan: Callable[[int], EpochPlan] | None = None,
        compiled_rows: Callable[[], int | None] | None = None,
    ) -> None:
        """`network` takes normalised images (N, 3, S, S); `output` is the type of its taps.

        `caches` are those of the views by their numbers, of one type; views may share one.
        With the `plan` of an epoch its rows are fetched from the disk before they are read.
        Where `compiled_rows` says for how many images the network is compiled, it runs on all of a
        batch of so many that mostly misses; the outputs that were there count nevertheless.
        """
        self.network = network
        self.caches = caches
        sample = next(iter(caches.values()))
        self._dtype, self._stored = sample.dtype, tuple(sample.widths)
        self.kinds = tuple(kinds)
        self.output = output
        self.plan = plan
        self._compiled_rows = compiled_rows
        self._epoch = -1
        self.hits = self.misses = 0
        self.rounding = (0.0, 0.0)

    def __call__(self, batch: Batch, view: int) -> Taps:
        """The taps of one view of a batch; a batch without view numbers goes past the cache."""
        images = batch.images[view]
        if not batch.view_numbers:
            return self.network(images)
        if self.plan is not None and batch.epoch != self._epoch:
            self._epoch = batch.epoch
            Thread(target=self._expect, args=(self.plan, batch.epoch), daemon=True).start()
        index, view_numbers, ids = (
            t.cpu() for t in (batch.index, batch.view_numbers[view], batch.view_ids[view])
        )
        cache = self.caches[view]
        hit, stored = cache.read(index, view_numbers, ids)
        known = int(hit.sum())
        self.hits += known
        self.misses += len(hit) - known
        rows = {kind: stored[kind].to(self.output) for kind in self.kinds}
        if known < len(hit):
            missing = (~hit).nonzero()[:, 0]
            computed = self._run_on_missing(images, missing)
            rounded, fits = self._round(computed)
            new = missing[fits]
            kept = {kind: value[fits] for kind, value in rounded.items()}
            cache.write(index[new], view_numbers[new], ids[new], kept)
            for kind in self.kinds:
                rows[kind][missing] = computed[kind].to(self.output)
                rows[kind][new] = kept[kind].to(self.output)
        return Taps((kind, value.to(images.device)) for kind, value in rows.items())

    def _expect(self, plan: Callable[[int], EpochPlan], epoch: int) -> None:
        planned = plan(epoch)
        for view, cache in self.caches.items():
            cache.expect(planned.order, planned.view_numbers[view][planned.order])

    def notes(self) -> list[str]:
        """Sentences on how many outputs were there, and what rounding to a smaller type changed."""
        reads = self.hits + self.misses
        notes = [f"teacher cache: {self.hits:,} of {reads:,} outputs were there"] if reads else []
        if any(self.rounding):
            absolute, relative = self.rounding
            notes.append(
                f"teacher cache: {str(self._dtype).removeprefix('torch.')} changed outputs by "
                f"at most {absolute:.2g}, {relative:.2g} of an output's largest number"
            )
        return notes

    def _run_on_missing(self, images: Tensor, missing: Tensor) -> dict[str, Tensor]:
        """Outputs of the network on the rows that are missing, in their order."""
        count = len(images)
        if len(missing) == count:
            return self._run(images)
        is_fast = self._compiled_rows is not None and self._compiled_rows() == count
        if is_fast and len(missing) > _MOSTLY * count:
            return {kind: value[missing] for kind, value in self._run(images).items()}
        return self._run(images[missing.to(images.device)])

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of the network on images: per stored kind (N, width), on the CPU."""
        taps = self.network(images)
        return {kind: taps.tensor(kind).detach().cpu() for kind in self._stored}

    def _round(self, computed: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The same in the cache's type, and which rows fit it (float16 ends at 65504)."""
        rounded = {kind: value.to(self._dtype) for kind, value in computed.items()}
        fits = torch.stack([v.isfinite().all(dim=1) for v in rounded.values()]).all(dim=0)
        for kind, value in computed.items():
            if value.dtype != self._dtype:
                self._note_rounding(value[fits].float(), rounded[kind][fits].float())
        return rounded, fits

    def _note_rounding(self, computed: Tensor, stored: Tensor) -> None:
        if len(computed):
            error = (computed - stored).abs().amax(dim=1)
            share = error / computed.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
            absolute, relative = self.rounding
            self.rounding = max(absolute, float(error.max())), max(relative, float(share.max()))

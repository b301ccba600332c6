"""A teacher that looks into its cache before it looks at the images."""

from collections.abc import Callable, Sequence
from threading import Thread

import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.data.reader import EpochPlan
from compress.taps import Taps
from compress.teacher.cache.rows import TeacherCache

# Share of a batch that must be missing before all of it is shown to a teacher that is compiled for
# whole batches: two CPU cores took 313 ms for 64 images compiled and 407 ms uncompiled.
_MOSTLY = 313 / 407


class CachedTeacher:
    """A teacher that is asked only what its cache does not hold.

    A batch that was stored whole comes back with the very bits that the network gave, in the
    cache's type; what is stored is also what is returned on the first visit, so that no result
    depends on what happened to be there, but for this: networks may round a part of a batch
    differently than all of it. On CUDA, index and outputs pass through the CPU, so that every
    step waits for the device.
    """

    def __init__(
        self,
        live: Callable[[Tensor], Taps],
        cache: TeacherCache,
        kinds: Sequence[str],
        output: torch.dtype = torch.float32,
        plan: Callable[[int], EpochPlan] | None = None,
        compiled_rows: Callable[[], int | None] | None = None,
    ) -> None:
        """`live` shows normalised images (N, 3, S, S) to the network; `output` is its type.

        With the `plan` of an epoch its rows are fetched from the disk before they are asked for.
        Where `compiled_rows` says for how many images the network is compiled, it is shown all of
        a batch of so many that mostly misses; what was found counts nevertheless.
        """
        self.live = live
        self.cache = cache
        self.kinds = tuple(kinds)
        self.output = output
        self.plan = plan
        self._compiled_rows = compiled_rows
        self._epoch = -1
        self.hits = self.misses = 0
        self.rounding = (0.0, 0.0)

    def __call__(self, batch: Batch, view: int) -> Taps:
        """The taps of one view of a batch; a batch without slots goes past the cache."""
        images = batch.images[view]
        if not batch.slots:
            return self.live(images)
        if self.plan is not None and batch.epoch != self._epoch:
            self._epoch = batch.epoch
            Thread(target=self._expect, args=(self.plan, batch.epoch), daemon=True).start()
        index, slots, ids = (
            t.cpu() for t in (batch.index, batch.slots[view], batch.view_ids[view])
        )
        hit, found = self.cache.read(index, slots, ids)
        known = int(hit.sum())
        self.hits += known
        self.misses += len(hit) - known
        rows = {kind: found[kind].to(self.output) for kind in self.kinds}
        if known < len(hit):
            missing = (~hit).nonzero()[:, 0]
            given = self._missing(images, missing)
            fresh, fits = self._rounded(given)
            new = missing[fits]
            stored = {kind: value[fits] for kind, value in fresh.items()}
            self.cache.write(index[new], slots[new], ids[new], stored)
            for kind in self.kinds:
                rows[kind][missing] = given[kind].to(self.output)
                rows[kind][new] = stored[kind].to(self.output)
        shown = {kind: value.to(images.device) for kind, value in rows.items()}
        return Taps(shown.get("logits"), shown.get("pooled"), None, None, None, {})

    def _expect(self, plan: Callable[[int], EpochPlan], epoch: int) -> None:
        planned = plan(epoch)
        for slots in planned.slots:
            self.cache.expect(planned.order, slots[planned.order])

    def remarks(self) -> list[str]:
        """How much was found, and what rounding to a smaller type changed; for the log."""
        asked = self.hits + self.misses
        found = [f"teacher cache: {self.hits:,} of {asked:,} outputs were there"] if asked else []
        if any(self.rounding):
            absolute, relative = self.rounding
            found.append(
                f"teacher cache: {str(self.cache.dtype).removeprefix('torch.')} changed outputs by "
                f"at most {absolute:.2g}, {relative:.2g} of an output's largest number"
            )
        return found

    def _missing(self, images: Tensor, missing: Tensor) -> dict[str, Tensor]:
        """What the network says of the rows that are missing, in their order."""
        count = len(images)
        if len(missing) == count:
            return self._ask(images)
        is_fast = self._compiled_rows is not None and self._compiled_rows() == count
        if is_fast and len(missing) > _MOSTLY * count:
            return {kind: value[missing] for kind, value in self._ask(images).items()}
        return self._ask(images[missing.to(images.device)])

    def _ask(self, images: Tensor) -> dict[str, Tensor]:
        """What the network says of images: per stored kind (N, width), on the CPU."""
        taps = self.live(images)
        return {kind: getattr(taps, kind).detach().cpu() for kind in self.cache.widths}

    def _rounded(self, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The same in the cache's type, and which rows fit it (float16 ends at 65504)."""
        rounded = {kind: value.to(self.cache.dtype) for kind, value in given.items()}
        fits = torch.stack([v.isfinite().all(dim=1) for v in rounded.values()]).all(dim=0)
        for kind, value in given.items():
            if value.dtype != self.cache.dtype:
                self._note_rounding(value[fits].float(), rounded[kind][fits].float())
        return rounded, fits

    def _note_rounding(self, given: Tensor, stored: Tensor) -> None:
        if len(given):
            error = (given - stored).abs().amax(dim=1)
            share = error / given.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
            absolute, relative = self.rounding
            self.rounding = max(absolute, float(error.max())), max(relative, float(share.max()))

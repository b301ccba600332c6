"""Teacher outputs on disk: what a teacher said of one view of one image is computed once.

A cache is a folder named by a digest of all that the outputs depend on:
  cache.json   identity and shape, for people and for checking; written first, never changed
  rows.bin     row (image * views + number): the outputs, int64 view id, checksum; sparse
`number` counts the views of an image from 0. A row counts only if it names the very view asked for
and its checksum fits, so a kill, a power cut or two processes at the same row lose rows and never
give a wrong target. Nothing is ever deleted: a damaged or foreign `cache.json` is refused. The
bound on bytes is that of one cache. Rows are read through a memory map and written by system
calls, since a full disk kills a process that writes through a map. On a full tmpfs even reading
through one does: the folder belongs on a disk.
"""

import mmap
import os
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from compress.console.messages import log
from compress.distributed.collectives import on_main_process
from compress.errors import UserError
from compress.storage.files import read_mapping, write_json
from compress.storage.fingerprints import changed_fields, fingerprint_of

FORMAT = 2  # raised also where an augmentation's ids come to stand for other views
_MARKS = 8 + 4  # bytes of a row's view id and checksum; checksum 0 says that nothing is there


def row_bytes(widths: Mapping[str, int], dtype: torch.dtype) -> int:
    """Bytes of one view: its outputs, view id and checksum."""
    return sum(widths.values()) * dtype.itemsize + _MARKS


def images_kept(
    images: int, views: int, widths: Mapping[str, int], dtype: torch.dtype, max_bytes: int
) -> int:
    """Of how many images, the first ones, a cache of `max_bytes` holds every view."""
    return min(images, max_bytes // (views * row_bytes(widths, dtype)))


class OutputCache:
    """The outputs of one teacher on one data set under one augmentation; see `open`."""

    def __init__(
        self, folder: Path, shape: Mapping[str, Any], images: int, dtype: torch.dtype
    ) -> None:
        """Map the rows of the first `images` images of a folder that `open` has checked."""
        self.folder = folder
        self.dtype = dtype
        self.images = images
        self.widths: dict[str, int] = dict(shape["widths"])
        self._of: int = shape["images"]
        self._views: int = shape["slots"]
        self._record = row_bytes(self.widths, dtype)
        self._salt = zlib.crc32(folder.name.encode())
        self._storing = True
        path, rows = folder / "rows.bin", images * self._views
        with FileLock(folder / ".lock"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            weakref.finalize(self, os.close, self._file)
            # It may be longer: another process may have a higher bound.
            if os.fstat(self._file).st_size < rows * self._record:
                os.truncate(path, rows * self._record)
        mapped = mmap.mmap(self._file, rows * self._record, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):
            # Rows lie anywhere: what the system reads beside them, unless advised, is for nothing.
            mapped.madvise(mmap.MADV_RANDOM)
        self._map = np.frombuffer(mapped, np.uint8).reshape(rows, self._record)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        images: int,
        views: int,
        widths: Mapping[str, int],
        dtype: torch.dtype,
        max_bytes: int,
    ) -> "OutputCache":
        """Create or re-enter the cache of `identity` inside `folder`; several processes may.

        Args:
            identity: all that the outputs depend on, as plain values: digests of teacher and data,
                augmentation (with `data.views` also what draws them), arithmetic, taps.
            views: distinct views of an image.
            widths: the kinds that are stored ("logits", "pooled") and their numbers per view.
            dtype: float32, bfloat16 or float16.
            max_bytes: what the file may take; only as many of the first images are kept.

        Raises:
            UserError: `cache.json` is damaged or another cache's, or not one image fits.
        """
        shape = {"images": images, "slots": views, "widths": dict(widths), "dtype": str(dtype)}
        content = {"format": FORMAT, "identity": dict(identity), **shape}
        kept = images_kept(images, views, widths, dtype, max_bytes)
        if not kept:
            raise UserError(
                f"a teacher cache of {max_bytes} bytes holds no image: one with its {views} views "
                f"takes {views * row_bytes(widths, dtype)}"
            )
        own = folder / fingerprint_of(content)
        own.mkdir(parents=True, exist_ok=True)
        on_main_process(lambda: _describe(own, content))
        return cls(own, shape, kept, dtype)

    def expect(self, index: Tensor, view_numbers: Tensor) -> None:
        """Have the system fetch rows from the disk before they are read; waits for none of them."""
        rows, kept = self._rows(index, view_numbers)
        if hasattr(os, "posix_fadvise"):
            for row in rows[kept].tolist():
                place = row * self._record
                os.posix_fadvise(self._file, place, self._record, os.POSIX_FADV_WILLNEED)

    def read(
        self, index: Tensor, view_numbers: Tensor, view_ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read what is stored of some views; (N,) each, on the CPU.

        Returns:
            Which are stored, bool (N,), and per kind (N, width) in the cache's type: zeros where
            nothing is.
        """
        rows, kept = self._rows(index, view_numbers)
        lines = self._map[np.where(kept, rows, 0)]  # a copy: what is checked is what is returned
        ids, sums = _marks(lines)
        hit = kept & (sums != 0) & (ids == view_ids.numpy())
        hit[hit] = sums[hit] == self._checksums(lines[hit], rows[hit])
        lines[~hit] = 0
        outputs, start = {}, 0
        for kind, width in self.widths.items():
            end = start + width * self.dtype.itemsize
            outputs[kind] = torch.from_numpy(lines[:, start:end].copy()).view(self.dtype)
            start = end
        return torch.from_numpy(hit), outputs

    def write(
        self, index: Tensor, view_numbers: Tensor, view_ids: Tensor, outputs: Mapping[str, Tensor]
    ) -> None:
        """Store per kind (N, width) in the cache's type, CPU; images past the bound are left out.

        What cannot be written ends the storing with one message; what was stored stays readable.
        """
        rows, kept = self._rows(index, view_numbers)
        if not self._storing or not kept.any():
            return
        values = [outputs[kind].contiguous().view(torch.uint8).numpy() for kind in self.widths]
        ids = view_ids.contiguous().view(torch.uint8).view(-1, 8).numpy()
        lines = np.concatenate([*values, ids, np.zeros((len(ids), 4), np.uint8)], axis=1)[kept]
        if lines.shape[1] != self._record:
            raise ValueError(f"outputs are not {self.widths} numbers of {self.dtype}")
        rows = rows[kept]
        lines[:, -4:] = self._checksums(lines, rows).view(np.uint8).reshape(-1, 4)
        try:
            for line, row in zip(lines, rows.tolist(), strict=True):
                os.pwrite(self._file, line, row * self._record)
        except OSError as error:
            self._storing = False
            log(f"teacher cache {self.folder}: {error.strerror}; no more outputs are stored")

    def notes(self) -> list[str]:
        """A sentence on the bound of this cache, where it leaves out images."""
        if self.images == self._of:
            return []
        return [
            f"teacher cache: outputs of the first {self.images:,} of {self._of:,} images are kept"
        ]

    def _rows(self, index: Tensor, view_numbers: Tensor) -> tuple[Any, Any]:
        """Row numbers, and which of them are inside the bound."""
        images, views = index.numpy(), view_numbers.numpy()
        for numbers, end in ((images, self._of), (views, self._views)):
            if ((numbers < 0) | (numbers >= end)).any():
                raise ValueError(f"an image or a view outside of the cache's {end}")
        return images * self._views + views, images < self.images

    def _checksums(self, lines: Any, rows: Any) -> Any:
        """uint32 (N,) of values and view id, never 0; a row of another place or cache fails."""
        starts = ((rows ^ self._salt) & 0xFFFFFFFF).tolist()
        data, length = memoryview(lines.tobytes()), self._record
        ends = range(length - 4, len(data), length)
        pairs = zip(ends, starts, strict=True)
        sums = [zlib.crc32(data[end + 4 - length : end], start) or 1 for end, start in pairs]
        return np.array(sums, np.uint32)


def _describe(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `cache.json`, or compare what is there."""
    path = folder / "cache.json"
    with FileLock(folder / ".lock"):
        if not path.is_file():
            write_json(path, content)
        changed = changed_fields(read_mapping(path), dict(content))
    if changed:
        raise UserError(
            f"{path} describes another cache than its folder's name ({', '.join(changed)}); "
            "restore it or delete its folder"
        )


def _marks(lines: Any) -> tuple[Any, Any]:
    """View ids (N,) int64 and checksums (N,) uint32 of rows."""
    ids, sums = lines[:, -_MARKS:-4].copy(), lines[:, -4:].copy()
    return ids.view(np.int64)[:, 0], sums.view(np.uint32)[:, 0]

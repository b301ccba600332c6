"""The file of a teacher that is known by its outputs alone, in .npz or .safetensors.

logits             (N, K), of the training images without augmentation, in the order of the recipe's
                   training split: after `classes`, `train_images` and the like were taken, and
                   without the validation split.
index              (N,), optional: row i of `logits` is of training image index[i].
test_logits        optional, (T, K) of the test images in their order: the teacher's accuracy.
validation_logits  optional, the same of the validation split.

Logits are floating point numbers of any width, and are kept in float32.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.errors import UserError, in_one_line
from compress.storage.files import read_tensors

_LOGITS = ("logits", "test_logits", "validation_logits")
_KEYS = (*_LOGITS, "index")


@dataclass(frozen=True)
class OutputFile:
    """What a file holds: logits (N, K) by name, and the index (N,) of those of training images."""

    path: Path
    logits: Mapping[str, Tensor]
    index: Tensor | None

    @property
    def classes(self) -> int:
        """K."""
        return self.logits["logits"].shape[1]

    def of_training(self, images: int) -> Tensor:
        """The row of every training image, in their order.

        Raises:
            UserError: an image has no row or two, or there are rows of images that do not exist.
        """
        rows = self.logits["logits"]
        index = torch.arange(len(rows)) if self.index is None else self.index
        outside = (index < 0) | (index >= images)
        if outside.any():
            raise UserError(
                f"'{self.path}' has a row of training image {int(index[outside][0])}; the recipe "
                f"has {images:,}, numbered from 0"
            )
        counts = torch.bincount(index, minlength=images)
        missing, twice = (counts == 0).nonzero().flatten(), (counts > 1).nonzero().flatten()
        if len(missing):
            raise UserError(
                f"'{self.path}' has no logits of {len(missing):,} of {images:,} training images, "
                f"the first of them image {int(missing[0])}; each needs a row, since there is no "
                "teacher here to ask"
            )
        if len(twice):
            raise UserError(f"'{self.path}' has several rows of training image {int(twice[0])}")
        return torch.empty_like(rows).index_copy_(0, index, rows)

    def of_split(self, prefix: str, images: int) -> Tensor | None:
        """The rows of the images of a split that is evaluated, where the file has some.

        Raises:
            UserError: their number is not that of the images.
        """
        name = f"{prefix or 'test_'}logits"
        rows = self.logits.get(name)
        if rows is not None and len(rows) != images:
            raise UserError(
                f"'{self.path}' has {len(rows):,} rows of `{name}`, the split has {images:,} images"
            )
        return rows


def read_outputs(path: Path, classes: int | None = None) -> OutputFile:
    """Read a file of outputs of so many classes (None: any number).

    Raises:
        UserError: it is missing, damaged or has another content.
    """
    tensors = _read(path)
    unknown = sorted({*tensors} - {*_KEYS})
    if unknown or "logits" not in tensors:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(
            f"'{path}' holds {held}; a file of outputs holds `logits` and may hold "
            "`index`, `test_logits` and `validation_logits`"
        )
    index = tensors.pop("index", None)
    logits = {name: _checked(path, name, rows) for name, rows in tensors.items()}
    widths = {name: rows.shape[1] for name, rows in logits.items()}
    wanted = classes or widths["logits"]
    for name, width in widths.items():
        if width != wanted:
            whose = "the data have" if classes else "`logits` has"
            raise UserError(f"'{path}' has {width} classes in `{name}`, {whose} {wanted}")
    if index is not None and (
        index.is_floating_point() or index.shape != logits["logits"].shape[:1]
    ):
        raise UserError(
            f"'{path}' has an `index` {tuple(index.shape)} of {_type(index)}; expected is a whole "
            f"number for each of {len(logits['logits']):,} rows"
        )
    return OutputFile(path, logits, None if index is None else index.long())


def _checked(path: Path, name: str, rows: Tensor) -> Tensor:
    if rows.dim() != 2 or not rows.is_floating_point() or not rows.numel():
        raise UserError(
            f"'{path}' has `{name}` {tuple(rows.shape)} of {_type(rows)}; expected are "
            "(images, classes) of floating point numbers"
        )
    rows = rows.float()
    finite = rows.isfinite().all(1)
    if not finite.all():
        raise UserError(
            f"'{path}' has no finite logits in {int((~finite).sum()):,} rows of `{name}`, the "
            f"first of them row {int((~finite).nonzero()[0])}"
        )
    return rows


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.suffix != ".npz":
        raise UserError(f"'{path}' is no file of outputs; they are .npz or .safetensors")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} not found (looked in {Path.cwd()})") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no .npz: {in_one_line(error)}") from None

"""Reading CIFAR's official pickles without executing anything in them.

No function of numpy is called on what a file says: an array is made of its bytes alone, by the
classes below, which stand for numpy's own while the file is read.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserError, in_one_line
from compress.storage.user_files import require_file

_TYPES = {kind: np.dtype(kind) for kind in ("u1", "i4", "i8")}


class _Type:
    """numpy's `dtype`: one of a few integers, little-endian as they are without a state."""

    def __init__(self, kind: Any, *_flags: Any) -> None:
        name = kind.decode() if isinstance(kind, bytes) else kind
        if name not in _TYPES:
            raise ValueError(f"an array of type {name!r}")
        self.dtype = _TYPES[name]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", b"<", b"|"):
            raise ValueError("an array is not little-endian")


class _Array:
    """numpy's `ndarray`, whose content follows as its state."""

    values: NDArray[Any] | None = None

    def __init__(self, *_empty: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, is_fortran, content = state
        order: Any = "F" if is_fortran else "C"
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _bytes(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, with which Python 3 writes bytes in the old protocols."""
    if encoding != "latin1":
        raise ValueError(f"bytes are written in {encoding}")
    return text.encode("latin1")


# The only names in the official archive (in numpy 1's and 2's modules) and what stands for them.
_STANDING = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _bytes,
}


# Python's own implementation: one number in a file makes the fast one fill the memory.
class _ArraysOnly(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDING:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
        return _STANDING[module, name]


def read_pickle(path: Path) -> dict[bytes, Any]:
    """A CIFAR pickle; anything in it but containers, numbers, text and arrays is refused."""
    require_file(path)
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # damaged pickles fail in many ways
        raise UserError(f"{path} is not a CIFAR file, or damaged: {in_one_line(error)}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a CIFAR file: it holds a {type(content).__name__}")
    return {
        key.encode() if isinstance(key, str) else key: _plain(value)
        for key, value in content.items()
    }


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value

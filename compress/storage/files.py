"""Files written in one step: a reader or a kill sees the old content or the new.

Of several processes the main one alone writes; the others may read once they have waited for it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compress.distributed.collectives import is_main_process
from compress.errors import UserError

_CHECKSUM = "checksum"


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader or a kill sees the old content or the new."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, see `write_text`."""
    if not is_main_process():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step; NaN is refused, a number that was not measured is null."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, naming the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no text, no JSON, or nested without end
        raise UserError(f"{path} is damaged ({error}); restore it or delete its folder") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read JSON that holds a mapping."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no mapping); restore it or delete its folder")
    return content


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors in one step; with metadata, also a checksum of all of it."""
    if not is_main_process():
        return
    partial = path.with_name(path.name + ".partial")
    # safetensors refuses channels_last and shared storage.
    plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    checksum = {_CHECKSUM: _checksum(plain, metadata)} if metadata else {}
    try:
        save_file(plain, partial, metadata={**(metadata or {}), **checksum})
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}; what was written before is whole") from None
    partial.chmod(0o644)  # safetensors keeps files to their owner
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, on the CPU.

    Raises:
        UserError: the file is not there or damaged, or its checksum, if it has one, does not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path} not found (looked in {Path.cwd()})") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated: {error}") from None
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged: its content does not fit its checksum")
    return tensors, metadata


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> str:
    """SHA-256 of the metadata and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(metadata or {}), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), [*tensor.shape]]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

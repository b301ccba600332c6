"""Digests of files, folders and fields, and the fields in which two mappings differ."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.storage.user_files import folders_below
from compress.text import short_repr


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """A digest of everything a stage's result depends on."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of_folder(root: Path) -> str:
    """A digest of names and sizes: reading every file of a large data set would take minutes."""
    paths = (Path(at, name) for at, names in folders_below(root) for name in names)
    files = sorted(path for path in paths if path.is_file())
    return fingerprint_of({f.relative_to(root).as_posix(): f.stat().st_size for f in files})


def changed_fields(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested values differ, with both; lists are compared by entry."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(key, before.get(key), after.get(key)) for key in sorted({*before, *after})]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(i), old, new) for i, (old, new) in enumerate(zip(before, after, strict=True))]
    else:
        return [f"{path} ({short_repr(before)} -> {short_repr(after)})"]
    return [
        line
        for key, old, new in pairs
        for line in changed_fields(old, new, f"{path}.{key}".strip("."))
    ]

"""Whether files are what was written: digests of files and JSON, and where damage is put.

A JSON file that is sealed holds a digest of its own content. Of other files a finished stage keeps
a record (size and SHA-256) in its sealed `result.json`. `verified.json` beside it says which files
were read and found whole, by size, times and inode, so that an unchanged file is not read again.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.storage.fingerprints import sha256_file

_DIGEST = "digest"
_VERIFIED = "verified.json"
# A change within the file system's clock tick leaves the times as they are: what was written just
# now is read again the next time. FAT has the coarsest clock.
_TICK_NS = 2_000_000_000


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with a digest of itself."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content), allow_nan=False))
    return {**plain, _DIGEST: _digest_of(plain)}


def require_seal(content: Mapping[str, Any], path: Path, unsealed: Collection[str]) -> None:
    """Check the digest that a JSON file holds of itself.

    Args:
        unsealed: the keys of such a file as it was written before there were seals.

    Raises:
        UserError: the content is not what was written.
    """
    if not set(content) <= set(unsealed) and content.get(_DIGEST) != _digest_of(content):
        raise UserError(f"{path} is damaged: its content is not what was written")


def _digest_of(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != _DIGEST}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def record(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of all that a folder holds."""
    return {"bytes": sum(p.stat().st_size for p in _files(path)), "sha256": _sha256(path)}


def find_damaged(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Find the files of a folder that are not as recorded, and what is wrong with each.

    A record without `bytes`, or whose digest is None, says that much less of its file.
    """
    path = folder / _VERIFIED
    before = _read_verified(path)
    known = dict(before)
    problems = {name: _problem(folder, name, entry, known) for name, entry in records.items()}
    if known != before:
        _write_verified(path, known)
    return {name: problem for name, problem in problems.items() if problem}


# The keys of a stage's result as it was written before there were seals.
UNSEALED_RESULT = ("stage", "fingerprint", "values", "measured")


def put_aside(folder: Path, names: Iterable[str]) -> Path:
    """Move files that cannot be used to `superseded/` of their run; returns where they are.

    Args:
        folder: lies in a run directory; outside of one, it gets the folder `superseded` itself.
        names: paths inside `folder`, moved in this order; what does not exist is left out.
    """
    root = next((p for p in (folder, *folder.parents) if (p / "run.json").is_file()), folder)
    place = "-".join(folder.relative_to(root).parts)
    target = choose_folder(root / "superseded", f"damaged-{place}" if place else "damaged")
    for name in names:
        if (folder / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(target / name)
    return target


def choose_folder(shelf: Path, name: str) -> Path:
    """Choose the next free folder in `superseded/`: `004-NAME`."""
    shelf.mkdir(parents=True, exist_ok=True)
    numbers = [p.name.split("-")[0] for p in shelf.iterdir()]
    number = 1 + max((int(n) for n in numbers if n.isdigit()), default=0)
    return shelf / f"{number:03d}-{name}"


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or every file of a folder but `verified.json`, in a fixed order."""
    if not path.is_dir():
        return iter([path])
    inside = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith(_VERIFIED))
    return iter(sorted(inside))


def _sha256(path: Path) -> str:
    if not path.is_dir():
        return sha256_file(path)
    digests = {p.relative_to(path).as_posix(): sha256_file(p) for p in _files(path)}
    return _digest_of({"files": digests})


def _problem(
    folder: Path, name: str, entry: Mapping[str, Any], known: dict[str, dict[str, Any]]
) -> str:
    path = folder / name
    if not path.exists():
        return "is missing"
    try:
        stamps = [_stamp(p) for p in _files(path)]
        size, expected = sum(stamp[0] for stamp in stamps), entry.get("bytes")
        if expected is not None and size != expected:
            what = "is truncated" if size < expected else "was changed"
            return f"{what}: it has {size:,} bytes instead of {expected:,}"
        digest = entry["sha256"]
        seen = {"stamps": stamps if len(stamps) == 1 else _digest_of({"stamps": stamps}),
                "sha256": digest}  # fmt: skip
        if digest is None or known.get(name) == seen:
            return ""
        if _sha256(path) != digest:
            return "was changed: its SHA-256 differs"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if all(max(stamp[1:3]) < time.time_ns() - _TICK_NS for stamp in stamps):
        known[name] = seen
    return ""


def _stamp(path: Path) -> list[int]:
    """Size, times of content and of inode, inode: a changed file differs in one of them."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_verified(path: Path) -> dict[str, dict[str, Any]]:
    """The files that were verified; none where the list is damaged: they are read again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_verified(path: Path, known: Mapping[str, Any]) -> None:
    """Several processes may look at one folder at once, and it may be read-only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with suppress(OSError):
        partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
        partial.replace(path)

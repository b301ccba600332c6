"""manifest.json: what a bundle holds, with the SHA-256 of every file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from compress import __version__
from compress.errors import UserError
from compress.storage.files import read_mapping, write_json
from compress.storage.fingerprints import sha256_file

FORMAT = 1
NAME = "manifest.json"
_AGAIN = "copy the bundle again"


@dataclass(frozen=True)
class Entry:
    """A file as it was written."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    `data` is the recipe's data section without root, with the seed that subsets are drawn by;
    `files` are all of the bundle but manifest.json itself, by their path in it.
    """

    format: int
    made_by: str
    student: str
    fingerprint: str
    data: Mapping[str, Any]
    opset: int
    files: Mapping[str, Entry]


def write_manifest(
    folder: Path, *, student: str, fingerprint: str, data: Mapping[str, Any], opset: int
) -> Manifest:
    """List every file that is in `folder`; called when all of them are written.

    Args:
        student: the label that the student has in its run.
    """
    entries = {
        name: Entry(sha256_file(folder / name), (folder / name).stat().st_size)
        for name in sorted(_present(folder))
    }
    made_by = f"compress {__version__}"
    manifest = Manifest(FORMAT, made_by, student, fingerprint, dict(data), opset, entries)
    write_json(folder / NAME, asdict(manifest))
    return manifest


def check_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Raises:
        UserError: a file is missing, changed, truncated or not listed, one sentence for each; or
            the folder is no bundle.
    """
    manifest = _read(folder)
    present = _present(folder)
    problems = []
    for name in sorted({*manifest.files, *present}):
        if name not in manifest.files:
            problems.append(f"{name} is not listed in {NAME}; move it out of the bundle")
        elif name not in present:
            problems.append(f"{name} is missing; {_AGAIN}")
        else:
            problem = _problem(folder / name, manifest.files[name])
            if problem:
                problems.append(f"{name} {problem}; {_AGAIN}")
    if problems:
        raise UserError("\n".join(f"{folder}: {problem}" for problem in problems))
    return manifest


def _problem(path: Path, entry: Entry) -> str:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            what = "is truncated" if size < entry.bytes else "was changed"
            return f"{what}: it has {size:,} bytes instead of {entry.bytes:,}"
        return "" if sha256_file(path) == entry.sha256 else "was changed (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _present(folder: Path) -> set[str]:
    """Paths of the bundle's files; what file managers and interpreters leave is not counted."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir())
    return {
        p.as_posix()
        for p in paths
        if p.as_posix() != NAME and not any(part.startswith((".", "__")) for part in p.parts)
    }


def _read(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise UserError(f"bundle '{folder}' not found (looked in {Path.cwd()})")
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is no bundle: it has no {NAME}")
    content = read_mapping(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}; this version reads {FORMAT}")
    try:
        files = {name: Entry(**entry) for name, entry in content["files"].items()}
        manifest = Manifest(**{**content, "files": files})
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); {_AGAIN}") from None
    outside = [n for n in files if PurePosixPath(n).is_absolute() or ".." in n.split("/")]
    if outside or not isinstance(manifest.data, dict):
        raise UserError(f"{path} is damaged ({(outside or ['data'])[0]!r}); {_AGAIN}")
    return manifest

"""manifest.json: the files of a bundle with their SHA-256, and where they come from."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, field_validator

from compress import __version__
from compress.errors import UserError
from compress.storage.files import write_json
from compress.storage.fingerprints import sha256_file
from compress.storage.json_files import ClosedSchema, read_json_checked
from compress.text import short_repr
from export.bundle.interfaces import FileInterface

FORMAT = 1
NAME = "manifest.json"
_AGAIN = "copy the bundle again"


_Line = Annotated[str, Field(max_length=4096)]


class FileEntry(ClosedSchema):
    """Digest and size of a file when it was written."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(ClosedSchema):
    """The content of manifest.json.

    `data` is the recipe's data section without root, with the seed that subsets are drawn by;
    `files` are all of the bundle but manifest.json itself, by their path in it; `int8` says on
    which CPUs the int8 file is right or why it was refused (None: no int8, or an older bundle).
    `interfaces` are inputs and outputs of each ONNX file, `preparation` the way from an image to
    the pixels of the input in words (both None: an older bundle).
    """

    format: int
    made_by: _Line
    student: _Line
    fingerprint: _Line
    data: dict[str, Any]
    opset: Annotated[int, Field(ge=1, le=1000)]
    files: dict[_Line, FileEntry]
    int8: dict[str, Any] | None = None
    preparation: _Line | None = None
    interfaces: dict[_Line, FileInterface] | None = None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in name.split("/"):
                raise ValueError(f"files names {short_repr(name)}, which is not in the bundle")
        return files


def write_manifest(
    folder: Path,
    *,
    student: str,
    fingerprint: str,
    data: Mapping[str, Any],
    opset: int,
    int8: Mapping[str, Any] | None = None,
    preparation: str | None = None,
    interfaces: Mapping[str, FileInterface] | None = None,
) -> Manifest:
    """Write the list of all files in `folder`; call it when every other file is written.

    Args:
        student: the label that the student has in its run.
    """
    entries = {
        name: FileEntry(sha256=sha256_file(folder / name), bytes=(folder / name).stat().st_size)
        for name in sorted(_present(folder))
    }
    manifest = Manifest(
        format=FORMAT,
        made_by=f"compress {__version__}",
        student=student,
        fingerprint=fingerprint,
        data=dict(data),
        opset=opset,
        files=entries,
        int8=None if int8 is None else dict(int8),
        preparation=preparation,
        interfaces=None if interfaces is None else dict(interfaces),
    )
    write_json(folder / NAME, manifest.model_dump())
    return manifest


def check_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Raises:
        UserError: a file is missing, changed, truncated or not listed, one sentence for each; or
            the folder is no bundle.
    """
    manifest = read_manifest(folder)
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


def _problem(path: Path, entry: FileEntry) -> str:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            change = "is truncated" if size < entry.bytes else "was changed"
            return f"{change}: it has {size:,} bytes instead of {entry.bytes:,}"
        return "" if sha256_file(path) == entry.sha256 else "was changed (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _present(folder: Path) -> set[str]:
    """Paths of the bundle's files, without those that file managers and interpreters leave."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir())
    return {
        p.as_posix()
        for p in paths
        if p.as_posix() != NAME and not any(part.startswith((".", "__")) for part in p.parts)
    }


def bundle_of(folder: Path) -> Path:
    """The bundle that `folder` is, or that of the run directory that it is."""
    of_run = folder / "export" / "bundle"
    is_run = not (folder / NAME).exists() and (of_run / NAME).is_file()
    return of_run if is_run else folder


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without checking the files against it.

    Raises:
        UserError: the folder is no bundle, or the manifest is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"bundle '{folder}' not found (looked in {Path.cwd()})")
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is no bundle: it has no {NAME}")
    return Manifest.model_validate(read_json_checked(path, Manifest, FORMAT))

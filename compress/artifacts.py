"""The run directory: fingerprints, results written last and atomically, files that survive a kill.

Of several processes the first alone writes and moves what is on the disk; the others may read it
once they have waited for it.

DIR/run.json  recipe.yaml  resolved.yaml  environment.json  log.txt  report.*
DIR/<stage>/fields.json    what the stage depends on, written before it starts
DIR/<stage>/result.json    {"stage", "fingerprint", "values", "measured", "files", "digest"},
                           written when done; `files` records what the stage vouches for
DIR/superseded/            folders of results whose inputs changed, and files that were found
                           damaged; nothing is ever deleted
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compress.errors import UserError
from compress.integrity import UNSEALED_RESULT, numbered, record, require_seal, seal
from compress.integrity import sha256_file as sha256_file
from compress.ranks import by_first, is_first
from compress.recipe import Recipe
from compress.user_files import folders_below

_CHECKSUM = "checksum"
_STAGE_FOLDERS = ("teacher", "distill/*", "fuse", "account", "export", "transfer/*")


@dataclass(frozen=True)
class Outcome:
    """What a stage found: `values` are reproducible bit by bit, `measured` holds every time."""

    values: dict[str, Any]
    measured: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One planned piece of work, as a stage's `run` receives it."""

    name: str
    folder: Path
    run_folder: Path
    recipe: Recipe
    arguments: Mapping[str, Any]
    device: torch.device
    workers: int
    recipe_fingerprint: str
    # What jobs that are trained side by side have in common; None: the job is trained alone.
    companions: dict[Any, Any] | None = None
    # What the folder was begun for, see `RunDirectory.begin`.
    fields: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False  # nothing that was done earlier may be taken


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader or a kill sees the old content or the new."""
    if not is_first():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
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
    if not is_first():
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


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """A digest of everything a stage's result depends on."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of_folder(root: Path) -> str:
    """A digest of names and sizes: reading every file of a large data set would take minutes."""
    found = (Path(at, name) for at, names in folders_below(root) for name in names)
    files = sorted(path for path in found if path.is_file())
    return fingerprint_of({f.relative_to(root).as_posix(): f.stat().st_size for f in files})


def changed_fields(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested mappings differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            line
            for key in keys
            for line in changed_fields(before.get(key), after.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == after else [f"{path} ({before!r} -> {after!r})"]


def read_result(run_folder: Path, stage: str) -> dict[str, Any]:
    """A finished stage's `result.json`.

    Raises:
        UserError: there is none, or its content is not what was written.
    """
    path = run_folder / stage / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} has no finished stage '{stage}'; run the recipe first")
    result = read_mapping(path)
    if not {"fingerprint", "values", "measured"} <= set(result):
        raise UserError(f"{path} is damaged; redo the stage with --fresh {stage}")
    require_seal(result, path, UNSEALED_RESULT)
    return result


class RunDirectory:
    """A directory that belongs to one recipe and holds everything it made."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @contextmanager
    def open(self) -> Iterator[None]:
        """Create or re-enter the directory; one run at a time."""
        with ExitStack() as held:
            by_first(lambda: held.enter_context(self._held()))
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            with tempfile.TemporaryFile(dir=self.folder):
                pass  # it can be written to
        except OSError as error:
            raise UserError(
                f"cannot write to run directory '{self.folder}': {error.strerror}; "
                "choose another with --out"
            ) from None
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"run directory '{self.folder}' is in use by another process; "
                "wait for it or choose another directory with --out"
            ) from None
        try:
            self._refuse_foreign()
            if not (self.folder / "run.json").is_file():
                write_json(self.folder / "run.json", {"name": self.name})
            yield
        finally:
            lock.release()

    def mark_current(self, stages: Sequence[str]) -> None:
        """Say which results belong to the recipe as it is; the report shows no others."""
        write_json(self.folder / "run.json", {"name": self.name, "current": list(stages)})

    def _refuse_foreign(self) -> None:
        marker = self.folder / "run.json"
        if marker.is_file():
            owner = self._owner(marker)
            if owner != self.name:
                raise UserError(
                    f"run directory '{self.folder}' belongs to recipe '{owner}', not to "
                    f"'{self.name}'; choose another directory with --out"
                )
        elif any(p.name not in (".lock", "run.json.partial") for p in self.folder.iterdir()):
            raise UserError(
                f"'{self.folder}' holds files and is no run directory; "
                "choose an empty or new directory with --out"
            )

    def _owner(self, marker: Path) -> Any:
        try:
            return read_mapping(marker).get("name")
        except UserError:
            raise UserError(
                f"{marker} is damaged; write {json.dumps({'name': self.name})} into it, if this "
                "is the run directory of that recipe"
            ) from None

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.folder / stage

    def finished(self, stage: str, fields: Mapping[str, Any]) -> bool:
        """Whether the stage has a result for exactly these fields; see `compress.skipping`, too.

        Raises:
            UserError: the result is damaged.
        """
        if not (self.stage_folder(stage) / "result.json").is_file():
            return False
        return bool(read_result(self.folder, stage)["fingerprint"] == fingerprint_of(fields))

    def differences(self, stage: str, fields: Mapping[str, Any]) -> list[str]:
        """What changed since the stage's folder was begun; empty where it was not begun."""
        folder = self.stage_folder(stage)
        path = folder / "fields.json"
        if not path.is_file():
            # Nobody knows what such a folder was trained for: it is put aside, never resumed.
            found = folder.is_dir() and any(folder.iterdir())
            return ["its fields.json is missing"] if found else []
        try:
            before = read_json(path)
        except UserError:
            return ["its fields.json is damaged"]
        return changed_fields(before, json.loads(json.dumps(fields)))

    def begin(self, stage: str, fields: Mapping[str, Any]) -> Path:
        """A stage's folder to work in; what was begun for the same fields is still in it."""
        folder = self.stage_folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        # A result that is there stands for other parts of this folder than those now asked for.
        if (folder / "result.json").is_file():
            os.replace(folder / "result.json", folder / "result.old.json")
        write_json(folder / "fields.json", fields)
        return folder

    def supersede(self, stage: str) -> Path | None:
        """Move a stage's folder aside; returns where it is now."""
        folder = self.stage_folder(stage)
        if not folder.exists():
            return None
        target = numbered(self.folder / "superseded", stage.replace("/", "-"))
        folder.rename(target)
        return target

    def restore(self, stage: str, fields: Mapping[str, Any]) -> bool:
        """Bring back the latest folder that was superseded and has exactly these fields.

        It may hold a result or a training that was stopped half way.
        """
        wanted = fingerprint_of(fields)
        for old in sorted((self.folder / "superseded").glob("*/fields.json"), reverse=True):
            of_stage = old.parent.name.partition("-")[2] == stage.replace("/", "-")
            if of_stage and _fingerprint_in(old) == wanted:
                self.stage_folder(stage).parent.mkdir(parents=True, exist_ok=True)
                old.parent.rename(self.stage_folder(stage))
                return True
        return False

    def shelve_unplanned(self, planned: Sequence[str]) -> None:
        """Move aside the folders of stages that the recipe no longer has."""
        for pattern in _STAGE_FOLDERS:
            for path in sorted(self.folder.glob(f"{pattern}/fields.json")):
                stage = path.parent.relative_to(self.folder).as_posix()
                if stage not in planned:
                    self.supersede(stage)

    def finish(
        self, stage: str, fields: Mapping[str, Any], outcome: Outcome, files: Iterable[str] = ()
    ) -> None:
        """Write the stage's result: from here on it counts as done.

        Args:
            files: what the stage vouches for besides its numbers, as paths in its folder.
        """
        result = {
            "stage": stage,
            "fingerprint": fingerprint_of(fields),
            "values": outcome.values,
            "measured": outcome.measured,
        }
        self.write_result(stage, {**result, "files": self.records(stage, files)})

    def records(self, stage: str, files: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Size and digest of files in a stage's folder, and of what it was begun for."""
        folder = self.stage_folder(stage)
        return {name: record(folder / name) for name in (*files, "fields.json")}

    def write_result(self, stage: str, result: Mapping[str, Any]) -> None:
        """Write `result.json` with a digest of itself."""
        write_json(self.stage_folder(stage) / "result.json", seal(result))


def _fingerprint_in(path: Path) -> str | None:
    """The fingerprint of a `fields.json`; None where it is damaged."""
    try:
        return fingerprint_of(read_json(path))
    except UserError:
        return None

"""The run directory: fingerprints, results written last and atomically, files that survive a kill.

Of several processes the first alone writes and moves what is on the disk; the others may read it
once they have waited for it.

DIR/run.json  recipe.yaml  resolved.yaml  environment.json  log.txt  report.*
DIR/<stage>/fields.json    what the stage depends on, written before it starts
DIR/<stage>/result.json    {"stage", "fingerprint", "values", "measured"}, written when done
DIR/superseded/            folders of results whose inputs changed; nothing is ever deleted
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compress.errors import UserError
from compress.ranks import by_first, is_first
from compress.recipe import Recipe
from compress.user_files import folders_below

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
    """Write tensors as safetensors in one step."""
    if not is_first():
        return
    partial = path.with_name(path.name + ".partial")
    # safetensors refuses channels_last and shared storage.
    plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    try:
        save_file(plain, partial, metadata=dict(metadata or {}))
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}; what was written before is whole") from None
    partial.chmod(0o644)  # safetensors keeps files to their owner
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} not found (looked in {Path.cwd()})") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated: {error}") from None


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
    """A finished stage's `result.json`."""
    path = run_folder / stage / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} has no finished stage '{stage}'; run the recipe first")
    result = read_mapping(path)
    if not {"fingerprint", "values", "measured"} <= set(result):
        raise UserError(f"{path} is damaged; redo the stage with --fresh {stage}")
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
            owner = read_mapping(marker).get("name")
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

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.folder / stage

    def finished(self, stage: str, fields: Mapping[str, Any]) -> bool:
        """Whether the stage's result stands for exactly these fields."""
        path = self.stage_folder(stage) / "result.json"
        return path.is_file() and read_mapping(path).get("fingerprint") == fingerprint_of(fields)

    def differences(self, stage: str, fields: Mapping[str, Any]) -> list[str]:
        """What changed since the stage's folder was begun; empty where it was not begun."""
        folder = self.stage_folder(stage)
        path = folder / "fields.json"
        if not path.is_file():
            # Nobody knows what such a folder was trained for: it is put aside, never resumed.
            found = folder.is_dir() and any(folder.iterdir())
            return ["its fields.json is missing"] if found else []
        return changed_fields(read_json(path), json.loads(json.dumps(fields)))

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
        shelf = self.folder / "superseded"
        shelf.mkdir(exist_ok=True)
        numbers = [p.name.split("-")[0] for p in shelf.iterdir()]
        number = 1 + max((int(n) for n in numbers if n.isdigit()), default=0)
        target = shelf / f"{number:03d}-{stage.replace('/', '-')}"
        folder.rename(target)
        return target

    def restore(self, stage: str, fields: Mapping[str, Any]) -> bool:
        """Bring back the latest folder that was superseded and has exactly these fields.

        It may hold a result or a training that was stopped half way.
        """
        wanted = fingerprint_of(fields)
        for old in sorted((self.folder / "superseded").glob("*/fields.json"), reverse=True):
            of_stage = old.parent.name.partition("-")[2] == stage.replace("/", "-")
            if of_stage and fingerprint_of(read_json(old)) == wanted:
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

    def finish(self, stage: str, fields: Mapping[str, Any], outcome: Outcome) -> None:
        """Write the stage's result: from here on it counts as done."""
        result = {
            "stage": stage,
            "fingerprint": fingerprint_of(fields),
            "values": outcome.values,
            "measured": outcome.measured,
        }
        write_json(self.stage_folder(stage) / "result.json", result)

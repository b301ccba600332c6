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

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.console.messages import log
from compress.distributed.collectives import on_main_process
from compress.errors import UserError
from compress.stages.job import Outcome
from compress.storage.files import read_json, read_mapping, write_json
from compress.storage.fingerprints import changed_fields, fingerprint_of
from compress.storage.integrity import choose_folder, record, seal
from compress.storage.results import read_result

_STAGE_FOLDERS = ("teacher", "distill/*", "fuse", "account", "export", "transfer/*")


class RunDirectory:
    """A directory that belongs to one recipe and holds everything it made."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @contextmanager
    def open(self) -> Iterator[None]:
        """Create or re-enter the directory; one run at a time."""
        with ExitStack() as held:
            on_main_process(lambda: held.enter_context(self._held()))
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
        """The folder of a stage's files."""
        return self.folder / stage

    def is_finished(self, stage: str, fields: Mapping[str, Any]) -> bool:
        """Tell whether the stage has a result for exactly these fields; see also `run.skipping`.

        Raises:
            UserError: the result is damaged.
        """
        if not (self.stage_folder(stage) / "result.json").is_file():
            return False
        return bool(read_result(self.folder, stage)["fingerprint"] == fingerprint_of(fields))

    def digest_of_result(self, stage: str) -> str:
        """A digest of a result: what follows depends on its values, not on its fields alone."""
        result = read_result(self.folder, stage)
        return fingerprint_of({key: result[key] for key in ("fingerprint", "values")})

    def fields_of(self, stage: str) -> dict[str, Any] | None:
        """The fields that a stage's folder was created for; None where nobody knows."""
        path = self.stage_folder(stage) / "fields.json"
        try:
            return read_mapping(path) if path.is_file() else None
        except UserError:
            return None

    def differences(self, stage: str, fields: Mapping[str, Any]) -> list[str]:
        """Fields that changed since the stage's folder was created; empty if there is none."""
        folder = self.stage_folder(stage)
        path = folder / "fields.json"
        if not path.is_file():
            # Nobody knows what such a folder was trained for: it is put aside, never resumed.
            has_files = folder.is_dir() and any(folder.iterdir())
            return ["its fields.json is missing"] if has_files else []
        try:
            before = read_json(path)
        except UserError:
            return ["its fields.json is damaged"]
        return changed_fields(before, json.loads(json.dumps(fields)))

    def make_room(
        self,
        stage: str,
        fields: Mapping[str, Any],
        *,
        restart: bool = False,
        restore: bool = True,
    ) -> None:
        """Put aside what a folder holds for other fields, bring back what was put aside and fits.

        Args:
            restart: put aside what fits, too.
            restore: bring something back.
        """
        differences = self.differences(stage, fields)
        if restart or differences:
            reason = "--fresh" if restart else "changed: " + ", ".join(differences)
            old = self.supersede(stage)
            if old is not None:
                log(f"{stage}: redone ({reason}); the old result is in {old}")
        if restore and not self.stage_folder(stage).exists() and self.restore(stage, fields):
            log(f"{stage}: what was done earlier fits again, restored")

    def begin(self, stage: str, fields: Mapping[str, Any]) -> Path:
        """Open a stage's folder for work; what was done there for these fields is still in it."""
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
        target = choose_folder(self.folder / "superseded", stage.replace("/", "-"))
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
        """Size and digest of files in a stage's folder, and of what it stands for."""
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

"""The interface of trackers, and their files in a run directory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from compress.storage.files import read_mapping, write_json, write_text
from compress.storage.fingerprints import fingerprint_of


@dataclass(frozen=True)
class Place:
    """The run that is tracked: its directory, its name and its recipe as plain values."""

    folder: Path
    name: str
    recipe: Mapping[str, Any]

    def load_or_create_id(
        self, kind: str, where: Mapping[str, Any], create: Callable[[], str]
    ) -> str:
        """Return the id of this run at a tracker, so that a run that is continued is one run there.

        Args:
            kind: names the tracker.
            where: the server, project and so on; elsewhere it is another run.
            create: gives a new id.
        """
        file = self._file(kind, where, "txt")
        if not file.is_file():
            write_text(file, create() + "\n")
        return file.read_text(encoding="utf-8").strip()

    def logged_epochs(self, kind: str, where: Mapping[str, Any]) -> "LoggedEpochs":
        """The epochs that a tracker has of this run; arguments as of `load_or_create_id`."""
        return LoggedEpochs(self._file(kind, where, "json"))

    def _file(self, kind: str, where: Mapping[str, Any], ending: str) -> Path:
        folder = self.folder / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{kind}-{fingerprint_of(where)}.{ending}"


class TrackerPart(Protocol):
    """A recipe's entry for a tracker: its name and its arguments."""

    name: str

    @property
    def arguments(self) -> dict[str, Any]: ...


class LoggedEpochs:
    """The last epoch of each network that a service has, in a file of the run directory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._epochs = read_mapping(file) if file.is_file() else {}

    def last(self, role: str) -> int:
        """The last epoch, from 1; 0 where there was none."""
        return int(self._epochs.get(role, 0))

    def note(self, role: str, epoch: int) -> None:
        """This epoch is the last now."""
        self._epochs[role] = epoch
        write_json(self._file, self._epochs)


class Tracker(ABC):
    """A service or file that the numbers of a run are logged to.

    Its keyword-only arguments are those of a recipe. An error that it raises is logged once, and it
    gets no more numbers.
    """

    package: ClassVar[str]  # the module that it needs
    install: ClassVar[str]  # what pip has to install for that
    # Of a service that would show an epoch twice where it is logged twice.
    logged_epochs: LoggedEpochs | None = None

    @abstractmethod
    def __init__(self, place: Place, **arguments: Any) -> None: ...

    @abstractmethod
    def log(self, role: str, epoch: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one epoch (from 1) of one network."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """The run has ended; `failed` where it stopped half way."""

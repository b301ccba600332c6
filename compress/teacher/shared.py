"""Teachers that several students learn from: they run once on each batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from compress.data.batch import Batch
from compress.methods.contract import TeacherForward
from compress.taps import Taps

# A batch or a part of it: epoch, step, first row, rows; and the view.
_View = tuple[int, int, int, int, int]


class Ensemble(Protocol):
    """Several teachers, made ready for the taps that are wanted."""

    def __len__(self) -> int:
        """The number of teachers."""
        ...

    def forwards(self, wanted: Sequence[str]) -> Sequence[TeacherForward]:
        """One forward per teacher that gives these taps."""
        ...


class SharedEnsemble:
    """The teachers of students that are trained on the same batches.

    Each student says what it reads before its first step; the teachers give it all at once, and
    their taps are kept until the next step.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._wanted: tuple[str, ...] = ()
        self._forwards: Sequence[TeacherForward] = ()
        self._taps: dict[tuple[int, _View], Taps] = {}

    def __len__(self) -> int:
        return len(self._ensemble)

    def forwards(self, wanted: Sequence[str]) -> list["SharedTeacher"]:
        """One forward per teacher for a student that reads these taps."""
        self._wanted = tuple(dict.fromkeys((*self._wanted, *wanted)))
        self._forwards, self._taps = (), {}
        return [SharedTeacher(self, number) for number in range(len(self))]

    def taps(self, number: int, batch: Batch, view: int) -> Taps:
        """All that any student reads of a teacher for a view of a batch."""
        if not self._forwards:
            self._forwards = self._ensemble.forwards(self._wanted)
        key = number, (batch.epoch, batch.step, batch.start, len(batch.index), view)
        if key not in self._taps:
            step = batch.epoch, batch.step
            self._taps = {k: taps for k, taps in self._taps.items() if k[1][:2] == step}
            self._taps[key] = self._forwards[number](batch, view)
        return self._taps[key]


@dataclass(frozen=True)
class SharedTeacher:
    """One teacher of an ensemble, as one of the students that share it has it."""

    ensemble: SharedEnsemble
    number: int

    def __call__(self, batch: Batch, view: int) -> Taps:
        """The taps of a view; the teacher runs for the first student that comes to the batch."""
        return self.ensemble.taps(self.number, batch, view)

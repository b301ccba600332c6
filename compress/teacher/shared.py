"""Teachers that several students learn from, each batch shown to them once."""

from collections.abc import Callable, Sequence

from compress.data.batch import Batch
from compress.distill.module import Source
from compress.taps import Taps

# A batch or a part of it: epoch, step, first row, rows; and the view.
_Seen = tuple[int, int, int, int, int]


class SharedTeachers:
    """The teachers of students that are trained on the same batches.

    Each student says what it reads before its first step; the teachers show it all at once, and
    what they showed is kept until the next step.
    """

    def __init__(self, build: Callable[[tuple[str, ...]], Sequence[Source]]) -> None:
        """`build` makes a source per teacher that shows these taps."""
        self._build = build
        self._wanted: tuple[str, ...] = ()
        self._sources: Sequence[Source] = ()
        self._shown: dict[tuple[int, _Seen], Taps] = {}

    def sources(self, wanted: Sequence[str], teachers: int) -> list[Source]:
        """A source per teacher for a student that reads these taps."""
        self._wanted = tuple(dict.fromkeys((*self._wanted, *wanted)))
        self._sources, self._shown = (), {}
        return [self._source(teacher) for teacher in range(teachers)]

    def _source(self, teacher: int) -> Source:
        return lambda batch, view: self._show(teacher, batch, view)

    def _show(self, teacher: int, batch: Batch, view: int) -> Taps:
        if not self._sources:
            self._sources = self._build(self._wanted)
        key = teacher, (batch.epoch, batch.step, batch.start, len(batch.index), view)
        if key not in self._shown:
            step = batch.epoch, batch.step
            self._shown = {k: taps for k, taps in self._shown.items() if k[1][:2] == step}
            self._shown[key] = self._sources[teacher](batch, view)
        return self._shown[key]

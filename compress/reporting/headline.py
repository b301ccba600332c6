"""The first screen: from the teacher to the files that ship, in accuracy, size and latency.

All three are ONNX files that ran in ONNX Runtime in turns, in one process, on the same threads and
the same batch. Nothing of a network that does not ship stands here but the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from compress.comparison.accuracy import AccuracyDifference, Score, compare_scores
from compress.comparison.students import saved_predictions
from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.differences import interval_text, verdict
from compress.reporting.document import Block, KeyFigures, Paragraph
from compress.reporting.tables import Column, ReportCell, ReportTable

# The names of export.bundle.timing and of the bundle's files.
TEACHER_RUNTIME = "ONNX Runtime, teacher"
_FILES = (("student.onnx", "ONNX Runtime"), ("student.int8.onnx", "ONNX Runtime, int8"))


@dataclass(frozen=True)
class Line:
    """The teacher, or a file that ships: what it is worth and what it costs."""

    name: str
    note: str
    score: Score | None
    size_bytes: int | None
    latency: Mapping[str, Mapping[str, Any]]  # by batch size
    # Of a task whose metric is no accuracy. Of a file that gives embeddings it is that of the
    # trained student, and `cosine` the mean one of the file's embeddings and those of that student.
    metric_percent: float | None = None
    cosine: float | None = None

    def median(self, batch: str) -> float | None:
        """Median milliseconds of a call with a batch of that size."""
        value = self.latency.get(batch, {}).get("median_ms")
        return None if value is None else float(value)

    def minus(self, other: "Line") -> AccuracyDifference | None:
        """The difference in accuracy, where both have one."""
        if self.score is None or other.score is None:
            return None
        return compare_scores(self.score, other.score)


class Lines(NamedTuple):
    """The lines of a run; `files` is empty where nothing was exported."""

    teacher: Line | None
    files: list[Line]
    title: str = "Top-1"  # of the metric
    images: int | None = None

    @property
    def rows(self) -> list[Line]:
        """The teacher first."""
        return [*([self.teacher] if self.teacher else []), *self.files]


def read_lines(run: RunData) -> Lines:
    """The teacher and the files of the bundle, with the predictions that were saved of them."""
    values, timed = run.values("export"), run.measured("export")
    if not values:
        return Lines(None, [])
    latency, files = timed.get("latency") or {}, []
    for (file, runtime), row in zip(_FILES, (values, values.get("int8")), strict=True):
        if row:
            score = _score(run, file, row)
            student = str(values.get("student"))
            timing = latency.get(runtime) or {}
            metric = row.get("onnx_miou_percent")  # the file's own, where it segments
            if metric is None and not run.task.is_accuracy:
                metric = _metric(run, student)
            size, cosine = row.get("size_bytes"), row.get("mean_cosine")
            files.append(Line(file, student, score, size, timing, metric, cosine))
    known_images = [row.score.test_images for row in files if row.score]
    images = next(iter(known_images), values.get("images"))
    if not run.teachers:
        return Lines(None, files, run.task.title, images)
    known, size = run.teachers[0], (timed.get("teacher") or {}).get("size_bytes")
    timing = latency.get(TEACHER_RUNTIME) or {}
    metric = known.mean_of(run.task.metric) if run.task.is_dense else None
    teacher = Line(known.model, "teacher", known.score, size, timing, metric)
    return Lines(teacher, files, run.task.title, images)


def _metric(run: RunData, student: str) -> float | None:
    """The task's metric of the training whose student ships."""
    value = run.values(f"distill/{student}").get(run.task.metric)
    return None if value is None else float(value)


def _score(run: RunData, file: str, row: Mapping[str, Any]) -> Score | None:
    if row.get("onnx_top1_percent") is None or not row.get("images"):
        return None
    result = run.results["export"]
    saved = saved_predictions(run.folder / "export", result, f"predictions/{file}.npz")
    predictions = {} if saved is None else {0: saved}
    return Score(float(row["onnx_top1_percent"]), int(row["images"]), predictions, is_fixed=True)


def headline(run: RunData, lines: Lines) -> list[Block]:
    """Key figures and the table of what ships."""
    table = headline_table(lines)
    if not run.task.is_accuracy:
        table = table.without_empty_columns()
    return [KeyFigures(_key_figures(lines)), table, _conditions(run, lines)]


def headline_table(lines: Lines) -> ReportTable:
    """A row for the teacher and for each file that ships."""
    batches = _batch_sizes(lines.rows)
    columns = [
        Column("What runs", is_number=False),
        Column(lines.title, "%"),
        Column("Against the teacher", "points"),
        Column("Size", "MB"),
        Column("Times smaller"),
    ]
    for size in batches:
        columns += [Column(f"Batch {size}", "ms"), Column("Times faster")]
    cells = [_cells(row, lines.teacher, batches) for row in lines.rows]
    place = len(cells) - len(lines.files) if lines.files else None
    return ReportTable(columns, cells, "What ships, against the teacher", highlight=place)


def short_headline(run: RunData) -> ReportTable:
    """The same for 80 columns."""
    table = headline_table(read_lines(run))
    columns = (0, 1, 3, 4, 5, 6)[: len(table.columns) - 1]
    return table.select(columns).without_empty_columns()


def _cells(row: Line, teacher: Line | None, batches: Sequence[str]) -> list[ReportCell | str]:
    reference = teacher if row is not teacher else None
    difference = row.minus(reference) if reference is not None else None
    cells: list[ReportCell | str] = [
        ReportCell(row.name, row.note),
        _quality(row),
        ReportCell(formats.MISSING)
        if difference is None
        else ReportCell(interval_text(difference), verdict(difference)),
        formats.megabytes(row.size_bytes),
        _times(reference.size_bytes if reference else None, row.size_bytes),
    ]
    for size in batches:
        median = row.median(size)
        cells += [
            formats.milliseconds(median),
            _times(reference.median(size) if reference else None, median),
        ]
    return cells


def _quality(row: Line) -> ReportCell | str:
    """Top-1; or the task's metric of the student, and how near the file is to it."""
    if row.metric_percent is None:
        return formats.decimal(row.score.top1_percent if row.score else None)
    return ReportCell(formats.decimal(row.metric_percent), _cosine_words(row))


def _cosine_words(row: Line) -> str:
    return "" if row.cosine is None else f"cosine {formats.decimal(row.cosine, 4)}"


def _beside(row: Line, teacher: Line | None) -> str:
    """The teacher's metric, or the file's cosine."""
    if teacher is None or teacher.metric_percent is None:
        return _cosine_words(row)
    return f"teacher {formats.percent(teacher.metric_percent)}"


def _batch_sizes(rows: Sequence[Line]) -> list[str]:
    """The smallest and the largest batch that were timed."""
    sizes = sorted({size for row in rows for size in row.latency}, key=int)
    return list(dict.fromkeys([sizes[0], sizes[-1]])) if sizes else []


def _times(teacher: float | None, own: float | None) -> str:
    return formats.MISSING if not teacher or not own else formats.decimal(teacher / own, 1)


def _key_figures(lines: Lines) -> list[tuple[str, str, str]]:
    """Three of each file that ships: accuracy, size and latency against the teacher."""
    teacher, items = lines.teacher, []
    for row in lines.files:
        smaller, faster = ratio_words(row, teacher)
        batch = next(iter(_batch_sizes([row])), "1")
        top1, of_teacher = (
            formats.percent(one.score.top1_percent if one and one.score else None)
            for one in (row, teacher)
        )
        if row.metric_percent is not None:
            metric = formats.percent(row.metric_percent)
            items.append((metric, f"{row.name}, {lines.title}", _beside(row, teacher)))
        difference = row.minus(teacher) if teacher else None
        points = f"{formats.signed(difference.points)} points" if difference else top1
        note = f"{top1}, teacher {of_teacher}" if teacher else ""
        if row.metric_percent is None:
            items.append((points, f"{row.name}, top-1", note))
        megabytes = [f"{formats.megabytes(one.size_bytes)} MB" for one in (row, teacher) if one]
        items.append((smaller or megabytes[0], f"{row.name}, size", _pair(megabytes, smaller)))
        times = [f"{formats.milliseconds(one.median(batch))} ms" for one in (row, teacher) if one]
        if row.median(batch) is not None:
            what = "one image" if batch == "1" else f"batch of {batch}"
            items.append((faster or times[0], f"{row.name}, {what}", _pair(times, faster)))
    return items


def _pair(texts: Sequence[str], ratio: str) -> str:
    """The two numbers behind a ratio; nothing where there is none."""
    return f"{texts[0]}, teacher {texts[1]}" if ratio else ""


def ratio_words(row: Line, teacher: Line | None) -> tuple[str, str]:
    """ "3.4 times smaller" and "2.1 times faster", or larger and slower; empty where not known."""
    if teacher is None:
        return "", ""
    batch = next(iter(_batch_sizes([row, teacher])), "1")
    pairs = ((teacher.size_bytes, row.size_bytes), (teacher.median(batch), row.median(batch)))
    words = (("smaller", "larger"), ("faster", "slower"))
    texts = []
    for (reference, own), (less, more) in zip(pairs, words, strict=True):
        if not reference or not own:
            texts.append("")
        elif own <= reference:
            texts.append(f"{formats.decimal(reference / own, 1)} times {less}")
        else:
            texts.append(f"{formats.decimal(own / reference, 1)} times {more}")
    return texts[0], texts[1]


def _threads(count: Any) -> str:
    return f"{formats.readable(count)} thread{'' if count == 1 else 's'}"


def _conditions(run: RunData, lines: Lines) -> Paragraph:
    """The protocol of these numbers, and why one is missing."""
    timed = run.measured("export")
    protocol = timed.get("protocol") or {}
    text = (
        f"{lines.title} of {formats.count(lines.images)} test images ({run.headline}). "
        "Sizes are those of the ONNX files; the teacher was written as one to be timed, and is not "
        "in the bundle."
    )
    if protocol:
        text += (
            f" Latency: ONNX Runtime on the CPU, {_threads(protocol.get('threads'))}, the files in "
            "turns, median of "
            f"{formats.readable(protocol.get('rounds'))} calls."
        )
    reason = (timed.get("teacher") or {}).get("not_exported")
    if reason:
        text += f" The teacher has no ONNX file: {reason}"
    elif run.teachers and not timed.get("teacher"):
        text += " The teacher was not timed beside the files; --fresh export does that."
    return Paragraph(text, is_note=True)

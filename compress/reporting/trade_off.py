"""The trade-off: accuracy of every network and file against its size, its MACs and its latency."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from compress.reporting import plots
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.figures import lower, styled
from compress.reporting.headline import Line, read_lines

_BATCH = "1"


class _Entry(NamedTuple):
    """A network, or a file that ships, with what it costs; None where that was not measured."""

    label: str
    metric: float
    error: float
    style: int
    is_file: bool
    size_mb: float | None
    macs_m: float | None
    latency_ms: float | None


class _Cost(NamedTuple):
    """An axis: what it is called, what it reads, and its word in a file's name and a sentence."""

    key: str
    label: str
    read: Callable[[_Entry], float | None]


_COSTS = (
    _Cost("size", "Size (MB)", lambda entry: entry.size_mb),
    _Cost("MACs", "MACs of an image (millions)", lambda entry: entry.macs_m),
    _Cost("latency", "Latency of one image (ms)", lambda entry: entry.latency_ms),
)


def trade_off(run: RunData) -> list[Block]:
    """A plot for each cost that is known of two networks or more."""
    heading, entries = Heading("Accuracy against cost"), list(_entries(run))
    images = []
    for cost in _COSTS:
        points = [
            plots.Point(e.label, value, e.metric, e.error, e.style, is_hollow=e.is_file)
            for e in entries
            if (value := cost.read(e)) is not None
        ]
        if len(points) < 2:
            continue
        plot = plots.accuracy_against_cost(
            points,
            cost.label,
            f"Test {lower(run.task.title)} (%)",
            salt=f"trade-off {cost.key}",
        )
        front = ", ".join(point.label for point in plots.pareto_front(points))
        alt = f"{run.task.title} against {cost.key}: {_in_words(points)}. Not beaten: {front}"
        name = f"figures/accuracy_{cost.key.lower()}.png"
        images.append(Image(name, alt, plot.png, plot.svg))
    if not images:
        return [heading, Paragraph(f"{run.why_absent('account')} No cost is known.")]
    return [heading, Figure(images, _caption(run, entries))]


def _in_words(points: list[plots.Point]) -> str:
    return "; ".join(f"{p.label} {p.y:.2f} % at {p.x:.3g}" for p in points)


def _caption(run: RunData, entries: list[_Entry]) -> str:
    text = (
        f"{run.task.title} ({run.headline}) against what a network costs: upper left is better. "
        "The dotted line joins those that no other beats in both."
    )
    if run.task.is_accuracy:
        text += " Bars: one standard error."
    if any(entry.is_file for entry in entries):
        text += (
            " Filled: networks, timed in torch. Hollow: ONNX files, timed in ONNX Runtime on the "
            "same machine."
        )
    return text


def _entries(run: RunData) -> Iterator[_Entry]:
    """The first teacher, the other networks, the files that ship."""
    places: dict[str, tuple[int, Any]] = {}
    for place, row in styled(run):
        metric = row.mean_of(run.task.metric)
        if metric is None:
            continue
        cost, timed = row.account, row.latency.get(_BATCH, {}).get("median_ms")
        macs, size = cost.get("macs"), cost.get("size_bytes")
        places[row.label] = place, macs
        yield _Entry(
            row.model if row.is_teacher else row.title,
            metric,
            row.standard_error or 0.0,
            place,
            False,
            None if size is None else size / 1e6,
            None if macs is None else macs / 1e6,
            timed,
        )
    lines = read_lines(run)
    for line in lines.rows:
        yield from _file(line, line is lines.teacher, places)


def _file(line: Line, is_teacher: bool, places: dict[str, tuple[int, Any]]) -> Iterator[_Entry]:
    """A file; of a float one, which is its network but for the runtime, the latency alone."""
    is_int8 = "int8" in line.name
    metric = line.metric_percent
    if metric is None and line.score is not None:
        metric = line.score.top1_percent
    if metric is None:
        return
    place, macs = places.get("teacher" if is_teacher else line.note, (0 if is_teacher else 1, None))
    size = line.size_bytes
    label = line.name if is_teacher else line.note
    yield _Entry(
        f"{label} {'int8' if is_int8 else 'ONNX'}",
        metric,
        line.score.standard_error if line.score is not None else 0.0,
        place,
        True,
        size / 1e6 if is_int8 and size is not None else None,
        macs / 1e6 if is_int8 and macs is not None else None,
        line.median(_BATCH),
    )

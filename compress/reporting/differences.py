"""A difference of two accuracies as text, the same in every table and sentence."""

from compress.comparison.accuracy import (
    NOT_DISTINGUISHABLE,
    AccuracyDifference,
    format_p_value,
)
from compress.comparison.paired import holm
from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Paragraph
from compress.reporting.network import Network
from compress.reporting.tables import Column, ReportCell, ReportTable

_MOST_CLASSES = 12

PAIRED = (
    "Differences, in brackets their 95 % interval, are of the same test images, one by one. Of "
    "one training each: the exact McNemar test and Tango's score interval (1998), widened to the "
    "test's own, for these two trainings and other test images. Of several trials, paired by "
    "their number: Student's t on the variance over trials and images, for other trainings as "
    "well. "
    f"Where p is 0.05 or more, networks are {NOT_DISTINGUISHABLE}; p is not corrected for the "
    "number of networks."
)
UNPAIRED = (
    "Differences marked unpaired are of networks whose predictions were not saved: ± the standard "
    "error of independent test sets, the root of the sum of both squares. One of at most two "
    f"standard errors is {NOT_DISTINGUISHABLE}."
)


def interval_text(difference: AccuracyDifference) -> str:
    """+0.67 (-1.01 to +2.35), the ends of the 95 % interval; unpaired +0.67 ± 1.39, its error."""
    points = formats.signed(difference.points)
    if difference.interval is None:
        return f"{points} ± {formats.decimal(difference.standard_error)}"
    low, high = (formats.signed(end) for end in difference.interval)
    return f"{points} ({low} to {high})"


def verdict(difference: AccuracyDifference) -> str:
    """not distinguishable, p = 0.62; without a p-value it is said to be unpaired."""
    if difference.p_value is None:
        return difference.reading if difference.is_paired else f"{difference.reading}, unpaired"
    return f"{difference.reading}, {format_p_value(difference.p_value)}"


def difference_cell(difference: AccuracyDifference | None) -> ReportCell:
    """The cell of a table."""
    if difference is None:
        return ReportCell(formats.MISSING)
    return ReportCell(interval_text(difference), verdict(difference))


def classes(run: RunData, first: Network | None, second: Network | None) -> list[Block]:
    """The classes in which two networks differ most; nothing where they cannot be paired."""
    if first is None or second is None or first is second:
        return []
    by_class = first.minus_by_class(second)
    if not by_class:
        return []
    adjusted = dict(zip(by_class, holm([d.p_value or 0.0 for d in by_class.values()]), strict=True))
    differing = [label for label, difference in by_class.items() if difference.points]
    differing.sort(key=lambda label: (adjusted[label], -abs(by_class[label].points)))
    pair, listed = f"{first.title} against {second.title}", differing[:_MOST_CLASSES]
    if not listed:
        return [Paragraph(f"By class: {pair}, all {len(by_class)} are equal.", is_note=True)]
    names, own, others = run.class_names, first.by_class(), second.by_class()
    rows: list[list[ReportCell | str]] = [
        [
            names[label] if label < len(names) else str(label),
            formats.count(own[label][1]),
            formats.decimal(own[label][0]),
            formats.decimal(others[label][0]),
            interval_text(by_class[label]),
            format_p_value(adjusted[label]).removeprefix("p = "),
        ]
        for label in listed
    ]
    columns = (
        Column("Class", is_number=False),
        Column("Test images"),
        Column(first.title, "%"),
        Column(second.title, "%"),
        Column("Difference", "points"),
        Column("p", "Holm"),
    )
    caption = f"By class: {pair}, the clearest differences first"
    note = (
        f"{len(differing)} of {len(by_class)} classes differ. Paired by test image; p is corrected "
        "for the number of classes (Holm), intervals are not."
    )
    return [ReportTable(columns, rows, caption), Paragraph(note, is_note=True)]

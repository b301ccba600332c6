"""The section on calibration: whether networks are right as often as their confidence says."""

from compress.comparison.calibration import BINS, expected_calibration_error, reliability
from compress.reporting import formats, plots
from compress.reporting.document import Block, Figure, Heading, Image
from compress.reporting.judged import Judged
from compress.reporting.tables import Column, ReportTable


def calibration(judged: list[Judged]) -> list[Block]:
    """Reliability diagram and expected calibration error; nothing without predictions."""
    known = [(one, sure) for one in judged if (sure := one.confidence) is not None]
    if not known:
        return []
    bins = {one.title: reliability(sure, one.predictions.correct) for one, sure in known}
    errors = {title: 100 * expected_calibration_error(found) for title, found in bins.items()}
    lines = [
        plots.Curve(
            one.title,
            [(100 * each.confidence, 100 * each.accuracy) for each in bins[one.title]],
            one.style,
        )
        for one, _ in known
    ]
    plot = plots.reliability(lines, salt="reliability")
    said = "; ".join(f"{title}: ECE {error:.2f} %" for title, error in errors.items())
    alt = f"Share of correct images against confidence. {said}"
    columns = (
        Column("Network", is_number=False),
        Column("Expected calibration error", "%"),
        Column("Mean confidence", "%"),
        Column("Correct", "%"),
    )
    rows = [
        [
            one.title,
            formats.decimal(errors[one.title]),
            formats.decimal(100 * float(sure.mean())),
            formats.decimal(100 * float(one.predictions.correct.mean())),
        ]
        for one, sure in known
    ]
    caption = (
        f"Reliability: test images in {BINS} bins of confidence, the share of them that is right. "
        "Below the dashed line a network is surer than it should be"
    )
    return [
        Heading("Calibration"),
        Figure([Image("figures/reliability.png", alt, plot.png, plot.svg)], caption),
        ReportTable(columns, rows, "Expected calibration error (Guo et al., 2017)"),
    ]

"""Accuracy against pruning ratio of the networks of a sweep, as Figure 6 of the SimKD paper.

Drawn for each pair whose cells count costs (`recipe.account`). Rows of one method that differ in
`reduction` alone are joined.
"""

from collections.abc import Mapping
from typing import Any

from compress.comparison.accuracy import standard_error_percent
from compress.methods import find_method
from compress.recipe.signatures import arguments_of
from compress.reporting import formats, plots
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.tables import Column, ReportCell, ReportTable
from compress.sweep.results import CellResult, Results
from compress.sweep.schema import SweepMethod

_RATIO = "pruning_ratio_percent"


def trade_off(results: Results) -> list[Block]:
    """A table of accuracies and ratios, and a picture for each pair; nothing without costs."""
    table = _table(results)
    if not table.rows:
        return []
    images = [image for pair in results.sweep.pairs for image in _picture(results, pair.name)]
    blocks: list[Block] = [Heading("Accuracy against pruning ratio"), table]
    if images:
        blocks.append(Figure(images, _CAPTION))
    return [*blocks, Paragraph(_READING, is_note=True)]


_CAPTION = (
    "Accuracy of what ships against its pruning ratio, one picture per pair. Bars: one standard "
    "error of the test set. Joined: one method with several reductions r. Dashed: the ratio of the "
    "bare student, to which nothing is added."
)
_READING = (
    "Pruning ratio (SimKD, eq. 6): the share of the teacher's parameters that what ships does "
    "without. Cost: points of it lost against the bare student, below 0 where what ships is "
    "smaller. Projector: its parameters in percent of the student's."
)


def _table(results: Results) -> ReportTable:
    columns = (
        Column("Pair", is_number=False),
        Column("Method", is_number=False),
        Column(f"{results.statistic.title.capitalize()}, {results.statistic.when}", "%"),
        Column("Parameters"),
        Column("Pruning ratio", "%"),
        Column("Cost", "points"),
        Column("Projector", "% of the student"),
    )
    rows: list[list[ReportCell | str]] = [
        [
            one.pair,
            one.row,
            formats.mean_and_deviation(one.percents),
            formats.count(one.account.get("parameters")),
            formats.decimal(one.account.get(_RATIO)),
            formats.decimal(one.account.get("pruning_ratio_cost_points")),
            formats.decimal(one.account.get("projector_to_student_percent")),
        ]
        for one in results.by_cell.values()
        if _is_known(one)
    ]
    return ReportTable(columns, rows, "Accuracy and pruning ratio of what ships")


def _is_known(one: CellResult) -> bool:
    return one.mean is not None and one.account.get(_RATIO) is not None


def _picture(results: Results, pair: str) -> list[Image]:
    """The picture of a pair; none where no method adds anything to the student."""
    known: dict[str, tuple[SweepMethod, CellResult]] = {}
    for method in results.sweep.methods:
        one = results.by_cell[pair, method.row]
        if _is_known(one):
            known[method.row] = method, one
    bare = {row: one for row, (_, one) in known.items() if not _adds(one.account)}
    adding = {row: (method, one) for row, (method, one) in known.items() if row not in bare}
    mark = bare.get(results.sweep.reference or "") or next(iter(bare.values()), None)
    if not adding or mark is None:
        return []
    families: dict[str, list[plots.Point]] = {}
    for method, one in adding.values():
        families.setdefault(_family(method), []).append(_point(one, _reduction(method)))
    lines = [
        plots.Family(label, sorted(points, key=lambda p: p.x)) for label, points in families.items()
    ]
    plot = plots.accuracy_against_ratio(
        lines,
        plots.Family(mark.row, [_point(mark, "")]),
        "Pruning ratio (%)",
        f"Test {results.statistic.title}, {results.statistic.when} (%)",
        salt=f"ratio {pair}",
    )
    alt = f"{pair}: accuracy against pruning ratio of {', '.join([mark.row, *adding])}"
    return [Image(f"figures/trade_off-{pair}.png", alt, plot.png, plot.svg)]


def _adds(account: Mapping[str, Any]) -> bool:
    """Whether what ships is another network than the bare student."""
    return bool(account[_RATIO] != account.get("plain_pruning_ratio_percent"))


def _family(method: SweepMethod) -> str:
    """The method and its arguments other than `reduction`, as the legend names it."""
    arguments = [f"{k} {v}" for k, v in sorted(method.arguments.items()) if k != "reduction"]
    return ", ".join([method.name, *arguments])


def _reduction(method: SweepMethod) -> str:
    """`r 2`, or nothing for a method that has none."""
    default = arguments_of(find_method(method.name)).get("reduction")
    return f"r {method.arguments.get('reduction', default[1])}" if default else ""


def _point(one: CellResult, label: str) -> plots.Point:
    assert one.mean is not None
    error = standard_error_percent(one.mean, one.test_images)
    return plots.Point(label, one.account[_RATIO], one.mean, error, 0)

"""The picture of accuracy against pruning ratio, and rows of what is judged beside a method."""

from typing import Any

from compress.reporting.document import Figure
from compress.sweep.results import CellResult, Results, _judged_beside
from compress.sweep.schema import Cell, Sweep, cells
from compress.sweep.trade_off import trade_off
from tests.sweep.test_sweep import checked, small

METHODS = [
    "kd",
    {"name": "simkd", "label": "r2"},
    {"name": "simkd", "label": "r8", "reduction": 8},
    {"name": "simkd_plus", "label": "plus"},
]
RATIOS = {"kd": 80.0, "r2": 70.0, "r8": 78.0, "plus": 20.0}


def _costs(row: str) -> dict[str, Any]:
    return {
        "parameters": 1000,
        "pruning_ratio_percent": RATIOS[row],
        "plain_pruning_ratio_percent": 80.0,
        "pruning_ratio_cost_points": 80.0 - RATIOS[row],
        "projector_to_student_percent": 5.0,
    }


def _results(sweep: Sweep, *, counted: bool = True) -> Results:
    results = Results(sweep)
    for number, cell in enumerate(cells(sweep)):
        row = cell.method.row
        results.by_cell[cell.pair.name, row] = CellResult(
            cell.pair.name, row, (60.0 + number,), 200, account=_costs(row) if counted else {}
        )
    return results


def test_a_pair_gets_a_picture_and_each_method_a_row() -> None:
    blocks = trade_off(_results(checked(small(methods=METHODS, paper={}))))
    (table,) = [b for b in blocks if hasattr(b, "rows")]
    shown = {str(row[1]): [str(cell) for cell in row[2:]] for row in table.rows}
    assert shown["r8"] == ["62.00", "1,000", "78.00", "2.00", "5.00"]
    assert list(shown) == list(RATIOS)
    (figure,) = [b for b in blocks if isinstance(b, Figure)]
    (image,) = figure.images
    assert image.file == "figures/trade_off-big-thin.png"
    assert image.alt == "big-thin: accuracy against pruning ratio of kd, r2, r8, plus"
    assert image.data.startswith(b"\x89PNG")
    names = ["kd", "simkd", "simkd_plus", "r 2", "r 8"]  # of families, and at points
    assert all(f">{name}<" in image.svg for name in names)


def test_methods_that_differ_in_reduction_alone_are_joined() -> None:
    def drawn(methods: list[Any]) -> str:
        (figure,) = [
            b
            for b in trade_off(_results(checked(small(methods=methods, paper={}))))
            if isinstance(b, Figure)
        ]
        return figure.images[0].svg

    apart = [*METHODS[:2], {**METHODS[2], "projector": "1x1-1x1"}, METHODS[3]]  # type: ignore[dict-item]
    assert drawn(METHODS) != drawn(apart)


def test_without_costs_there_is_nothing() -> None:
    assert trade_off(_results(checked(small(methods=METHODS, paper={})), counted=False)) == []


def test_what_is_judged_beside_a_method_has_a_row_of_its_own() -> None:
    raw = small(methods=["simkd_joint"], paper={"simkd_joint/own_classifier": [[74.4, 0.1]]})
    sweep = checked({**raw, "statistic": "best_on_test"})
    (cell,) = cells(sweep)
    trial = {
        "best_on_test_top1_percent": 50.0,
        "best_on_test_top1_percent/own_classifier": 40.0,
        "top1_percent/own_classifier": 30.0,
    }
    for trials, percents in (((), ()), ((trial,), (40.0,))):
        results = _rows_beside(sweep, cell, trials)
        assert results.rows == ["teacher", "simkd_joint", "simkd_joint/own_classifier"]
        beside = results.by_cell["big-thin", "simkd_joint/own_classifier"]
        assert (beside.percents, beside.paper) == (percents, [74.4, 0.1])


def _rows_beside(sweep: Sweep, cell: Cell, trials: tuple[dict[str, Any], ...]) -> Results:
    results = Results(sweep)
    one = CellResult(cell.pair.name, cell.method.row, test_images=200, trials=trials)
    results.by_cell[cell.pair.name, cell.method.row] = one
    results.by_cell |= _judged_beside(results, cell)
    return results

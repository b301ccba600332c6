"""The table of a sweep, as the papers print it: a row per method, a column per pair.

Each cell is the mean and standard deviation over trials in the paper's own statistic, an arrow
against the KD row, and the paper's value in a second line.
"""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

from rich.table import Table as RichTable

from compress.comparison.accuracy import NOT_DISTINGUISHABLE
from compress.reporting import formats
from compress.reporting.document import Block, Document, Heading, Paragraph
from compress.reporting.html import html
from compress.reporting.markdown import markdown
from compress.reporting.report import write_figures
from compress.reporting.tables import Column, ReportCell, ReportTable
from compress.storage.files import write_text
from compress.sweep.results import TEACHER, CellResult, Results, collect
from compress.sweep.schema import PaperValue, Status, Sweep
from compress.sweep.trade_off import trade_off

_ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}", NOT_DISTINGUISHABLE: "≈"}
_NOT_APPLICABLE = "n/a"


def accuracy_table(results: Results) -> ReportTable:
    """Methods by pairs."""
    sweep = results.sweep
    columns = [Column("Method", is_number=False)]
    columns += [Column(f"{pair.teaching} → {pair.student}", "%") for pair in sweep.pairs]
    rows = []
    for row in results.rows:
        entries = [_cell(results, results.by_cell[pair.name, row]) for pair in sweep.pairs]
        title = {"none": "student alone"}.get(row, row)
        rows.append([ReportCell(title, "paper" if row in sweep.paper else ""), *entries])
    return ReportTable(columns, rows, f"{sweep.title}: {results.statistic.title}")


def _cell(results: Results, one: CellResult) -> ReportCell:
    arrow = _ARROWS.get(results.reading(one), "")
    text = formats.mean_and_deviation(one.percents)
    if one.refused or one.failed:
        text = _NOT_APPLICABLE if one.refused else "failed"
    return ReportCell(f"{text} {arrow}".strip(), _paper(one.paper) if one.paper is not None else "")


def _paper(value: PaperValue) -> str:
    if isinstance(value, list):
        return f"{formats.decimal(value[0])} ± {formats.decimal(value[1])}"
    return formats.decimal(value)


def terms_table(results: Results) -> ReportTable:
    """Each method's own term on the held-out batch, first trial of each cell."""
    columns = (
        Column("Pair", is_number=False),
        Column("Method", is_number=False),
        Column("Term at the start", "before any phase"),
        Column("Before the main training"),
        Column("At the end"),
        Column("Gradient against CE's", "at the start"),
        Column("Gradient against CE's", "at the end"),
        Column("Fell", is_number=False),
    )
    rows = []
    for one in results.by_cell.values():
        terms = one.trials[0].get("terms", {}) if one.trials else {}
        if not terms.get("initial"):
            continue
        values = [terms[when]["term"] for when in ("initial", "start", "end")]
        pulls = [terms[when].get("gradient_to_ce") for when in ("initial", "end")]
        numbers = [formats.MISSING if v is None else f"{v:.4g}" for v in (*values, *pulls)]
        fell = None not in (values[0], values[2]) and values[2] < values[0]
        rows.append([one.pair, one.row, *numbers, "yes" if fell else "no"])
    return ReportTable(columns, rows, "The methods' own terms on a fixed batch")


def document(results: Results) -> Document:
    """The tables with what is needed to read them."""
    sweep = results.sweep
    blocks: list[Block] = [
        Paragraph(_protocol(results), is_lead=True),
        Heading("Accuracy"),
        accuracy_table(results),
        Paragraph(_reading(results), is_note=True),
    ]
    untrained = [one for one in results.by_cell.values() if one.refused or one.failed]
    for one in untrained:
        kind = "not applicable" if one.refused else "failed"
        why = one.refused or one.failed
        blocks.append(Paragraph(f"{one.pair}, {one.row}: {kind}: {why}", is_note=True))
    blocks += trade_off(results)
    terms = terms_table(results)
    if terms.rows:
        blocks += [Heading("Terms"), terms, Paragraph(_TERMS, is_note=True)]
    return Document(sweep.title, blocks)


_TERMS = (
    "The unweighted term on one fixed batch of test images without augmentation (of training "
    "images for CRD, which knows these alone), student in training mode, first trial. A term may "
    "be below 0 (VID). The gradient is that of the weighted term on the student's "
    "parameters, its norm divided by cross entropy's (weight 1 for a method whose term is only "
    "pre-trained)."
)


def _protocol(results: Results) -> str:
    sweep = results.sweep
    statistic = {
        "last_epoch": "accuracy of the epoch chosen on the validation split"
        if sweep.chooses_epochs
        else "accuracy after the last epoch",
        "best_on_test": "best accuracy on the test set, which is optimistic",
        "knn": "accuracy of the 10 nearest training images, whose labels were hidden from training",
        "mutual_knn": "share of the 10 nearest neighbours that student and teacher have in common",
    }
    done = sum(bool(one.percents) for one in results.by_cell.values() if one.row != TEACHER)
    wanted = sum(not one.refused for one in results.by_cell.values() if one.row != TEACHER)
    return (
        f"Protocol {sweep.protocol}: {_PROTOCOLS.get(sweep.protocol, 'published weights')} Each "
        f"number is the {statistic[sweep.statistic]}. {done} of {wanted} cells are trained."
    )


# Predictions are saved of the epoch that counts, not of the best one on the test set.
_TESTS = {
    "last_epoch": "paired by test image, p < 0.05: exact McNemar test, of several trials Student's "
    "t; two standard errors of independent test sets where predictions were not saved",
}
_BY_TEST_SET = "two standard errors of the test set"

_PROTOCOLS = {
    "crd": "a method's term beside cross entropy (KD itself 0.1 CE + 0.9 KD).",
    "simkd": "a method's term beside cross entropy and KD (SimKD: its own term alone).",
}


def _reading(results: Results) -> str:
    counts = [len(one.percents) for one in results.by_cell.values() if one.row != TEACHER]
    counts = [count for count in counts if count] or [0]
    trials = str(max(counts)) if len({*counts}) == 1 else f"{min(counts)} to {max(counts)}"
    spread = ", mean ± standard deviation (divisor n - 1)" if max(counts) > 1 else ""
    against = (
        f" Against KD of the same pair: ↑ higher, ↓ lower, ≈ {NOT_DISTINGUISHABLE} "
        f"({_TESTS.get(results.sweep.statistic, _BY_TEST_SET)})."
    )
    paper = " Second line, or in brackets: the paper's value." if results.sweep.paper else ""
    return f"Trials: {trials}{spread}.{against if results.sweep.reference else ''}{paper}"


def records(results: Results) -> list[dict[str, Any]]:
    """One plain mapping per cell."""
    key = results.statistic.key
    return [
        {
            "pair": one.pair,
            "method": one.row,
            "protocol": results.sweep.protocol,
            "statistic": results.sweep.statistic,
            "trials": len(one.percents),
            key: one.mean,
            "standard_deviation": stdev(one.percents) if len(one.percents) > 1 else None,
            "against_kd": results.reading(one) or None,
            "paper_percent": one.paper[0] if isinstance(one.paper, list) else one.paper,
            "paper_standard_deviation": one.paper[1] if isinstance(one.paper, list) else None,
            "pruning_ratio_percent": one.account.get("pruning_ratio_percent"),
            "not_applicable": one.refused or None,
            "failed": one.failed or None,
            "terms": [trial.get("terms") for trial in one.trials],
        }
        for one in results.by_cell.values()
    ]


def write_table(sweep: Sweep, folder: Path, status: Status) -> Path:
    """Write table.md, table.html, table.csv and table.json; returns the page's path."""
    results = collect(sweep, folder, status)
    page, rows = document(results), records(results)
    write_text(folder / "table.md", markdown(page))
    write_figures(page, folder)
    write_text(folder / "table.html", html(page))
    write_text(folder / "table.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    text = io.StringIO()
    columns = [column for column in rows[0] if column != "terms"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", text.getvalue())
    return folder / "table.html"


def terminal_table(sweep: Sweep, folder: Path, status: Status) -> RichTable:
    """The accuracy table for a terminal, with what its signs mean."""
    results = collect(sweep, folder, status)
    table = accuracy_table(results)
    columns = [replace(c, header=c.header.replace(" → ", "\n→ ")) for c in table.columns]
    return replace(table, columns=columns, caption=_reading(results)).rich(sweep.title)

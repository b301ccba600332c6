"""The report of a run: report.md, report.html and report.json, and a table for the terminal."""

import json
import os
from pathlib import Path

from rich.table import Table as RichTable

from compress.reporting import (
    bundle,
    cost,
    figures,
    headline,
    memory,
    representation,
    results,
    sections,
    segmentation,
    summary,
    transfer,
)
from compress.reporting.collect import RunData, load
from compress.reporting.document import Document, Figure
from compress.reporting.html import html
from compress.reporting.markdown import markdown
from compress.reporting.values import report_values


def write_report(run_folder: Path) -> Path:
    """Write the report of whatever stages have run; returns the path of report.html.

    Beside the three files, `figures/` holds the plots that report.md shows. Every file is
    replaced in one step, so a reader never meets half a report.
    """
    run = load(run_folder)
    report = document(run)
    write_figures(report, run_folder)
    text = json.dumps(report_values(run), indent=2, allow_nan=False) + "\n"
    _write(run_folder / "report.json", text.encode())
    _write(run_folder / "report.md", markdown(report).encode())
    page = run_folder / "report.html"
    _write(page, html(report).encode())
    return page


def write_figures(report: Document, folder: Path) -> None:
    """Write the plots that a report shows below `folder`, for its Markdown form."""
    for block in report.blocks:
        for image in block.images if isinstance(block, Figure) else ():
            if image.svg:  # drawn here; pictures of a stage are files already
                _write(folder / image.file, image.data)


def document(run: RunData) -> Document:
    """The report as blocks, in reading order."""
    blocks = [
        *summary.summary(run),
        *results.results(run),
        *segmentation.segmentation(run),
        *figures.training_curves(run),
        *figures.accuracy_and_size(run),
        *sections.fusion(run),
        *cost.cost(run),
        *bundle.bundle_section(run),
        *transfer.transfers(run),
        *representation.representation(run),
        *memory.training_memory(run),
        *sections.time_per_stage(run),
        *sections.definitions(),
        *sections.recipe(run),
        *sections.environment(run),
    ]
    return Document(f"Compression report: {run.name}", blocks)


def terminal_tables(run_folder: Path) -> list[RichTable]:
    """Tables of what ships and of all results, short enough for a terminal; none without any."""
    run = load(run_folder)
    tables = [headline.short_headline(run), results.short_table(run)]
    return [table.rich() for table in tables if table.rows]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)

"""The report of a run: report.md, report.html and report.json, and a table for the terminal."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as RichTable

from compress.data import Images
from compress.reporting import (
    bundle,
    by_class,
    calibration,
    cost,
    figures,
    gallery,
    headline,
    memory,
    progress,
    representation,
    results,
    sections,
    segmentation,
    summary,
    trade_off,
    transfer,
)
from compress.reporting.collect import RunData, load
from compress.reporting.document import Block, Document, Figure, Fold, Heading
from compress.reporting.html import html
from compress.reporting.judged import read_judged
from compress.reporting.markdown import markdown
from compress.reporting.values import report_values


def write_report(run_folder: Path, images: Images | None = None) -> Path:
    """Write the report of whatever stages have run; returns the path of report.html.

    Beside the three files, `figures/` holds the plots that report.md shows. Every file is
    replaced in one step, so a reader never meets half a report.

    Args:
        images: the test split of the run's data, for the gallery of predictions; without it, or
            if the predictions are of others, there is none.
    """
    run = load(run_folder)
    report = document(run, images)
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
            # Pictures of a stage are files already; what is drawn here lies in figures/.
            if image.svg or Path(image.file).parent == Path("figures"):
                _write(folder / image.file, image.data)


def document(run: RunData, images: Images | None = None) -> Document:
    """The report as blocks, in reading order: what ships, pictures, then the folded rest."""
    judged = read_judged(run) if run.task.is_accuracy else []
    blocks: list[Block] = [
        *progress.progress(run),
        *summary.summary(run),
        *trade_off.trade_off(run),
        *results.results(run),
        *segmentation.segmentation(run),
        *by_class.accuracy_by_class(run, judged),
        *gallery.gallery(run, judged, images),
        *calibration.calibration(judged),
        *figures.training_curves(run),
        *bundle.bundle_section(run),
        *transfer.transfers(run),
        *representation.representation(run),
    ]
    folded = (
        by_class.against_alone(run),
        results.trainings(run),
        sections.fusion(run),
        cost.cost(run),
        memory.training_memory(run),
        sections.time_per_stage(run),
        sections.definitions(),
        sections.recipe(run),
        sections.environment(run),
    )
    blocks += [fold for section in folded for fold in _folded(section)]
    return Document(f"Compression report: {run.name}", blocks)


def _folded(section: Sequence[Block]) -> list[Fold]:
    """A section as one that opens on a click; nothing of an empty one."""
    if not section:
        return []
    heading, *rest = section
    assert isinstance(heading, Heading)
    return [Fold(heading.text, rest)]


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

"""The short sections: fusion proof, time per stage, definitions, recipe, environment."""

from collections.abc import Mapping
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Code, Definitions, Heading, Paragraph
from compress.reporting.glossary import DEFINITIONS
from compress.reporting.tables import Column, ReportCell, ReportTable


def fusion(run: RunData) -> list[Block]:
    """Proof that the deployed network computes what the trained one does."""
    heading, values = Heading("Fusion proof"), run.values("fuse")
    students = values.get("students") or []
    if not students:
        return [heading, Paragraph(run.why_absent("fuse"))]
    tolerance = values.get("tolerance")
    columns = (
        Column("Student", is_number=False),
        Column("Trial"),
        Column("Images"),
        Column("Deployed against trained", "largest logit difference"),
        Column("Batch norm folded", "largest logit difference"),
        Column("Within tolerance", is_number=False),
        Column("Batch norms folded"),
        Column("Not folded", is_number=False),
    )
    rows = [_fused(row, tolerance) for row in students]
    caption = f"Parity of the fused networks; tolerance {formats.readable(tolerance)}"
    return [heading, ReportTable(columns, rows, caption)]


def time_per_stage(run: RunData) -> list[Block]:
    """Wall-clock time of every stage."""
    heading = Heading("Time per stage")
    seconds = stage_seconds(run)
    if not seconds:
        return [heading, Paragraph("No stage has finished.")]
    columns = (Column("Stage", is_number=False), Column("Time"), Column("Seconds"))
    named = [*seconds.items(), ("total", sum(seconds.values()))]
    rows = [(name, formats.duration(time), formats.decimal(time, 1)) for name, time in named]
    return [heading, ReportTable(columns, rows, "Wall-clock time", highlight=len(rows) - 1)]


def stage_seconds(run: RunData) -> dict[str, float]:
    """Seconds of every stage that recorded them."""
    recorded = {stage: run.measured(stage).get("seconds") for stage in run.results}
    return {stage: float(seconds) for stage, seconds in recorded.items() if seconds is not None}


def definitions() -> list[Block]:
    """The definition of every number."""
    return [Heading("Definitions"), Definitions(DEFINITIONS)]


def recipe(run: RunData) -> list[Block]:
    """The user's recipe."""
    text = run.recipe_text
    block = Code(text) if text else Paragraph("The run directory holds no recipe.")
    return [Heading("Recipe"), block]


def environment(run: RunData) -> list[Block]:
    """Versions of software, and the machine."""
    heading = Heading("Environment")
    if not run.environment:
        return [heading, Paragraph("The run directory says nothing of its environment.")]
    columns = (Column("Part", is_number=False), Column("Value", is_number=False))
    rows = list(_flat(run.environment))
    return [heading, ReportTable(columns, rows, "Software and machine")]


def _fused(row: Mapping[str, Any], tolerance: float | None) -> list[ReportCell | str]:
    largest = [row.get("fused_max_abs"), row.get("folded_max_abs")]
    known = [float(value) for value in largest if value is not None]
    verdict = formats.MISSING
    if known and tolerance is not None:
        verdict = "yes" if all(value <= tolerance for value in known) else "no"
    left = [f"{item.get('module')}: {item.get('reason')}" for item in row.get("not_folded") or []]
    return [
        str(row.get("label")),
        formats.count(row.get("trial", 0)),
        formats.count(row.get("images")),
        formats.scientific(largest[0]),
        formats.scientific(largest[1]),
        verdict,
        formats.count(row.get("folded")),
        "; ".join(left) or "none",
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        rows += (
            _flat(item, f"{name}.") if isinstance(item, dict) else [(name, formats.readable(item))]
        )
    return rows

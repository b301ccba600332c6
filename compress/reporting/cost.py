"""The section on accounting: costs of the networks."""

from collections.abc import Mapping
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.tables import Column, ReportCell, ReportTable


def cost(run: RunData) -> list[Block]:
    """Exact costs of every network, and its latency."""
    heading, values = Heading("Accounting"), run.values("account")
    networks = values.get("networks") or []
    if not networks:
        return [heading, Paragraph(run.why_absent("account"))]
    batch = formats.readable(values.get("peak_activation_batch", 1))
    shape = " x ".join(formats.readable(n) for n in values.get("input_shape") or []) or "unknown"
    exact = (
        Column("Network", is_number=False),
        Column("Role", is_number=False),
        Column("Parameters"),
        Column("MACs"),
        Column("FLOPs", "2 x MACs"),
        Column("Size", "bytes"),
        Column("Peak activations", "bytes"),
        Column("Operators not counted", is_number=False),
    )
    rows = [_costs(row) for row in networks]
    notes = [Paragraph(str(row["note"]), is_note=True) for row in networks if row.get("note")]
    blocks: list[Block] = [
        heading,
        ReportTable(exact, rows, f"Cost for one input of {shape}; activations at batch {batch}"),
    ]
    blocks += [*notes, *_projectors(networks)]
    blocks += latencies("Network", "Latency in torch", run.measured("account"))
    return blocks


def latencies(first: str, caption: str, measured: Mapping[str, Any]) -> list[Block]:
    """A table of median and p95 per batch size, a line per name; empty if nothing was timed."""
    latency = measured.get("latency") or {}
    sizes = sorted({size for row in latency.values() for size in row}, key=int)
    if not sizes:
        return []
    columns = [Column(first, is_number=False)]
    for size in sizes:
        columns += [Column(f"Batch {size}, {kind}", "ms") for kind in ("median", "p95")]
    keys = [(size, key) for size in sizes for key in ("median_ms", "p95_ms")]
    rows = [
        [name, *(formats.milliseconds(row.get(size, {}).get(key)) for size, key in keys)]
        for name, row in latency.items()
    ]
    return [ReportTable(columns, rows, caption), protocol(measured)]


def protocol(measured: Mapping[str, Any]) -> Paragraph:
    """The conditions under which latencies were measured."""
    conditions = measured.get("protocol") or {}
    return Paragraph(f"Protocol: {formats.readable(conditions) or 'not recorded'}.", is_note=True)


def _costs(row: Mapping[str, Any]) -> list[ReportCell | str]:
    uncounted = row.get("uncounted_operators") or {}
    return [
        str(row.get("label")),
        str(row.get("role")),
        formats.count(row.get("parameters")),
        formats.count(row.get("macs")),
        formats.count(row.get("flops")),
        formats.count(row.get("size_bytes")),
        formats.count(row.get("peak_activation_bytes")),
        formats.readable(uncounted) or ("none" if "macs" in row else formats.MISSING),
    ]


def _projectors(networks: Any) -> list[Block]:
    """The share of each deployed network that the method added to the student."""
    deployed = [row for row in networks if row.get("role") == "deployed"]
    if not deployed:
        return []
    columns = (
        Column("Deployed network", is_number=False),
        Column("Projector parameters"),
        Column("Projector / student", "%"),
        Column("Pruning ratio", "%"),
        Column("Plain pruning ratio", "%"),
        Column("Cost of the projector", "points"),
    )
    rows = [
        [
            str(row.get("label")),
            formats.count(row.get("projector_parameters")),
            formats.decimal(row.get("projector_to_student_percent")),
            formats.decimal(row.get("pruning_ratio_percent")),
            formats.decimal(row.get("plain_pruning_ratio_percent")),
            formats.decimal(row.get("pruning_ratio_cost_points")),
        ]
        for row in deployed
    ]
    return [ReportTable(columns, rows, "Share of the projector, and pruning ratio")]

"""What the networks cost: the accounting section, and the ONNX file beside torch."""

from collections.abc import Mapping
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import Run
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.tables import Cell, Column, Table


def cost(run: Run) -> list[Block]:
    """What every network costs, exactly, and how long it takes."""
    heading, values = Heading("Accounting"), run.values("account")
    networks = values.get("networks") or []
    if not networks:
        return [heading, Paragraph("The account stage has not run.")]
    batch = formats.plain(values.get("peak_activation_batch", 1))
    shape = " x ".join(formats.plain(n) for n in values.get("input_shape") or []) or "unknown"
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
    blocks: list[Block] = [
        heading,
        Table(exact, rows, f"Cost for one input of {shape}; activations at batch {batch}"),
    ]
    blocks += _projectors(networks)
    blocks += _latencies("Network", "Latency in torch", run.measured("account"))
    return blocks


def export(run: Run) -> list[Block]:
    """The ONNX file: is it the same network, and how fast is it."""
    heading, values = Heading("ONNX export"), run.values("export")
    if not values:
        return [heading, Paragraph("The export stage has not run.")]
    torch, timed = _torch_latency(run), run.measured("export")
    facts = [
        ("File", formats.plain(values.get("file"))),
        ("Student", formats.plain(values.get("student"))),
        ("Opset", formats.count(values.get("opset"))),
        ("Size (bytes)", formats.count(values.get("size_bytes"))),
        ("Images compared", formats.count(values.get("images"))),
        ("Largest logit difference", formats.scientific(values.get("max_abs_difference"))),
        ("Largest logit", formats.decimal(values.get("logit_scale"))),
        ("Tolerance, share of it", formats.scientific(values.get("tolerance"))),
        ("Agreement with torch (%)", formats.decimal(values.get("top1_agreement_percent"))),
        ("Top-1 in ONNX Runtime (%)", formats.decimal(values.get("onnx_top1_percent"))),
        ("Top-1 in torch (%)", formats.decimal(values.get("torch_top1_percent"))),
    ]
    columns = (Column("Quantity", is_number=False), Column("Value"))
    blocks: list[Block] = [
        heading,
        Table(columns, facts, "The exported file"),
    ]
    choice = run.recommendation
    if choice and choice.label != values.get("student"):
        text = f"The exported student is {values.get('student')}; recommended is {choice.label}."
        blocks.append(Paragraph(f"{text} Every student's folder can be exported.", is_note=True))
    both = {"ONNX Runtime": timed.get("latency") or {}, "torch": torch}
    timed = {**timed, "latency": {name: row for name, row in both.items() if row}}
    return blocks + _latencies("Runtime", "Latency of the exported student", timed)


def _latencies(first: str, caption: str, measured: Mapping[str, Any]) -> list[Block]:
    """One line per name, median and p95 of every batch size beside it; nothing where untimed."""
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
    return [Table(columns, rows, caption), _protocol(measured)]


def _protocol(measured: Mapping[str, Any]) -> Paragraph:
    protocol = measured.get("protocol") or {}
    return Paragraph(f"Protocol: {formats.plain(protocol) or 'not recorded'}.", is_note=True)


def _torch_latency(run: Run) -> Mapping[str, Any]:
    latency = run.measured("account").get("latency") or {}
    found = latency.get(run.values("export").get("student")) or {}
    return found if isinstance(found, dict) else {}


def _costs(row: Mapping[str, Any]) -> list[Cell | str]:
    uncounted = row.get("uncounted_operators") or {}
    return [
        str(row.get("label")),
        str(row.get("role")),
        formats.count(row.get("parameters")),
        formats.count(row.get("macs")),
        formats.count(row.get("flops")),
        formats.count(row.get("size_bytes")),
        formats.count(row.get("peak_activation_bytes")),
        formats.plain(uncounted) or "none",
    ]


def _projectors(networks: Any) -> list[Block]:
    """How much of a deployed network is what the method added to the student."""
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
    return [Table(columns, rows, "Share of the projector, and pruning ratio")]

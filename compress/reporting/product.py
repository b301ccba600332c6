"""The bundle: are its files the trained network, how large are they, and how fast."""

from collections.abc import Mapping
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import Run
from compress.reporting.cost import latencies
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.tables import Cell, Column, Table

_TORCH = "torch"


def product(run: Run) -> list[Block]:
    """The section on the export stage."""
    heading, values = Heading("ONNX export"), run.values("export")
    if not values:
        return [heading, Paragraph("The export stage has not run.")]
    blocks: list[Block] = [heading, _files(values), Paragraph(_reading(values), is_note=True)]
    choice = run.recommendation
    if choice and choice.label != values.get("student"):
        text = f"The exported student is {values.get('student')}; recommended is {choice.label}."
        blocks.append(Paragraph(f"{text} python -m export bundles any of them.", is_note=True))
    timed = run.measured("export")
    blocks += latencies("Runtime", "Latency of the exported student", timed)
    ratios = _ratios(timed.get("latency") or {})
    if ratios:
        blocks.append(Paragraph(ratios, is_note=True))
    reason = timed.get("not_compiled")
    if reason and timed.get("latency"):
        blocks.append(Paragraph(f"torch.compile is not in the table: {reason}.", is_note=True))
    return blocks


def _files(values: Mapping[str, Any]) -> Table:
    columns = (
        Column("File", is_number=False),
        Column("Size", "bytes"),
        Column("Share of the float file"),
        Column("Largest logit difference"),
        Column("Mean logit difference"),
        Column("Same class as torch", "%"),
        Column("Top-1", "%"),
    )
    whole = values.get("size_bytes")
    rows: list[list[Cell | str]] = [
        [
            "as trained, torch",
            *[formats.MISSING] * 5,
            formats.decimal(values.get("torch_top1_percent")),
        ],
        _file("student.onnx", values, whole),
    ]
    int8, encoder = values.get("int8"), values.get("encoder")
    if int8:
        rows.append(_file("student.int8.onnx", int8, whole))
    if encoder:
        size = formats.count(encoder.get("size_bytes"))
        rows.append([Cell("encoder.onnx", _shape(encoder)), size, *[formats.MISSING] * 5])
    return Table(columns, rows, f"The bundle of {values.get('student')}")


def _file(name: str, values: Mapping[str, Any], whole: Any) -> list[Cell | str]:
    size = values.get("size_bytes")
    share = size / whole if size and whole else None
    return [
        name,
        formats.count(size),
        formats.decimal(share),
        formats.scientific(values.get("max_abs_difference")),
        formats.scientific(values.get("mean_abs_difference")),
        formats.decimal(values.get("top1_agreement_percent")),
        formats.decimal(values.get("onnx_top1_percent")),
    ]


def _shape(encoder: Mapping[str, Any]) -> str:
    return "any height and width" if encoder.get("dynamic_size") else "one image size"


def _reading(values: Mapping[str, Any]) -> str:
    pixels = "raw uint8 pixels" if values.get("raw_pixels") else "normalised float32"
    return (
        f"Compared on {formats.count(values.get('images'))} test images; opset "
        f"{formats.plain(values.get('opset'))}; input: {pixels}. The float file may differ by "
        f"{formats.scientific(values.get('tolerance'))} of the largest logit "
        f"({formats.decimal(values.get('logit_scale'))})."
    )


def _ratios(latency: Mapping[str, Any]) -> str:
    """Each runtime's median at batch 1 as a share of torch eager's."""
    eager = latency.get(_TORCH, {}).get("1", {}).get("median_ms")
    if not eager:
        return ""
    shares = [
        f"{name} {row['1']['median_ms'] / eager:.2f}"
        for name, row in latency.items()
        if name != _TORCH and "1" in row
    ]
    return f"Share of torch eager's time at batch 1: {', '.join(shares)}." if shares else ""

"""The section on export: parity, size and speed of the bundle's files."""

from collections.abc import Mapping
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.cost import latencies
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.headline import TEACHER_RUNTIME
from compress.reporting.tables import Column, ReportCell, ReportTable

_TORCH = "torch"


def bundle_section(run: RunData) -> list[Block]:
    """The section on the bundle of the export stage."""
    heading, values = Heading("ONNX export"), run.values("export")
    if not values:
        return [heading, Paragraph(run.why_absent("export"))]
    blocks: list[Block] = [heading, _files(values), Paragraph(_comparison(values), is_note=True)]
    blocks += [Paragraph(text, is_note=True) for text in _int8(values)]
    blocks += _search(values)
    if len(run.students) > 1:
        text = "compress export RUN --student LABEL bundles any of the others."
        blocks.append(Paragraph(text, is_note=True))
    timed = run.measured("export")
    blocks += latencies("Runtime", "Latency of the files and of torch, in turns", timed)
    blocks += [Paragraph(text, is_note=True) for text in _speed(values, timed)]
    reason = timed.get("not_compiled")
    if reason and timed.get("latency"):
        blocks.append(Paragraph(f"torch.compile is not in the table: {reason}.", is_note=True))
    return blocks


def _files(values: Mapping[str, Any]) -> ReportTable:
    gives_embeddings = "mean_cosine" in values
    what = "" if gives_embeddings else "logit "
    fidelity = (
        (Column("Mean cosine with torch"), Column("Its lowest percent"))
        if gives_embeddings
        else (Column("Same class as torch", "%"), Column("Top-1", "%"))
    )
    columns = (
        Column("File", is_number=False),
        Column("Size", "bytes"),
        Column("Share of the float file"),
        Column(f"Largest {what}difference"),
        Column(f"Mean {what}difference"),
        *fidelity,
    )
    whole = values.get("size_bytes")
    rows: list[list[ReportCell | str]] = []
    if not gives_embeddings:
        top1 = formats.decimal(values.get("torch_top1_percent"))
        rows.append(["as trained, torch", *[formats.MISSING] * 5, top1])
    rows.append(_file("student.onnx", values, whole))
    int8, encoder = values.get("int8"), values.get("encoder")
    if int8:
        rows.append(_file("student.int8.onnx", int8, whole))
    if encoder:
        size = formats.count(encoder.get("size_bytes"))
        rows.append([ReportCell("encoder.onnx", _shape(encoder)), size, *[formats.MISSING] * 5])
    return ReportTable(columns, rows, f"The bundle of {values.get('student')}")


def _file(name: str, values: Mapping[str, Any], whole: Any) -> list[ReportCell | str]:
    size = values.get("size_bytes")
    share = size / whole if size and whole else None
    return [
        name,
        formats.count(size),
        formats.decimal(share),
        formats.scientific(values.get("max_abs_difference")),
        formats.scientific(values.get("mean_abs_difference")),
        *_fidelity(values),
    ]


def _fidelity(values: Mapping[str, Any]) -> list[str]:
    """How near a file is to the trained network, as the columns of its kind say it."""
    if "mean_cosine" in values:
        return [formats.decimal(values[key], 4) for key in ("mean_cosine", "low_cosine")]
    keys = ("top1_agreement_percent", "onnx_top1_percent")
    return [formats.decimal(values.get(key)) for key in keys]


def _int8(values: Mapping[str, Any]) -> list[str]:
    """Sentences on what the int8 file is for and where it is right, or on why it was left out."""
    refused = values.get("int8_refused")
    if refused:
        return [f"student.int8.onnx was left out of the bundle: {refused}."]
    int8, name = values.get("int8") or {}, "student.int8.onnx"
    sentences = []
    if int8.get("drop_words"):
        sentences.append(f"{name} against the trained network: {int8['drop_words']}.")
    remark = int8.get("gate", {}).get("remark")
    if remark:
        sentences.append(f"The limits could not be decided on so few images: {remark}.")
    if int8.get("full_range"):
        sentences.append(
            f"{name} has full range weights: right only on CPUs with VNNI or ARM dot product."
        )
    if int8.get("flavour_note"):
        sentences.append(f"{name} is {int8['flavour_note']}.")
    return sentences


def _search(values: Mapping[str, Any]) -> list[Block]:
    """Trials of the search for int8 settings, where there was one."""
    search = values.get("int8_search")
    if not search:
        return []
    columns = (
        Column("Calibration", is_number=False),
        Column("Float layers", is_number=False),
        Column("Same class as torch", "%"),
        Column("Top-1 drop"),
        Column("Largest difference"),
        Column("Verdict", is_number=False),
    )
    rows = []
    for i, trial in enumerate(search["trials"]):
        verdict = ["chosen"] if i == search["chosen"] else []
        verdict += [] if trial["within_limits"] else ["exceeds a limit"]
        rows.append(
            [
                trial["calibration"],
                ", ".join(map(str, trial["leave_out"])) or "none",
                formats.decimal(trial.get("agreement_percent")),
                formats.decimal(trial.get("top1_drop")),
                formats.decimal(trial["difference"]),
                ", ".join(verdict),
            ]
        )
    caption = (
        f"int8 settings that were tried, on {formats.count(search['images'])} images of the "
        f"{search['split']} split"
    )
    return [ReportTable(columns, rows, caption)]


def _shape(encoder: Mapping[str, Any]) -> str:
    return "any height and width" if encoder.get("dynamic_size") else "one image size"


def _comparison(values: Mapping[str, Any]) -> str:
    pixels = "raw uint8 pixels" if values.get("raw_pixels") else "normalised float32"
    return (
        f"Compared on {formats.count(values.get('images'))} test images; opset "
        f"{formats.readable(values.get('opset'))}; input: {pixels}. The float file may differ by "
        f"{formats.scientific(values.get('tolerance'))} of the largest "
        f"{'value' if 'largest_value' in values else 'logit'} "
        f"({formats.decimal(values.get('logit_scale', values.get('largest_value')))})."
    )


def _speed(values: Mapping[str, Any], timed: Mapping[str, Any]) -> list[str]:
    """Each runtime against torch eager at batch 1, and how much of the int8 file is int8."""
    medians = {
        name: row["1"]["median_ms"]
        for name, row in (timed.get("latency") or {}).items()
        if "1" in row
    }
    medians.pop(TEACHER_RUNTIME, None)
    eager = medians.pop(_TORCH, None)
    if not eager:
        return []
    shares = ", ".join(f"{name} {median / eager:.2f}" for name, median in medians.items())
    texts = [f"Of torch's time for one image takes: {shares}."]
    int8 = values.get("int8") or {}
    if int8.get("layers"):
        texts.append(f"{int8.get('quantized_layers')} of {int8['layers']} layers are int8.")
    return texts

"""The limits of `export.verify`, and its result as tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from compress.console.messages import console, log
from export.bundle.contents import ENCODER, FLOAT, FULL_RANGE, INT8
from export.bundle.int8_gate import Limits
from export.bundle.parity import OutputParity
from export.verify.comparisons import EncoderRow, Row

# Images that int8 may lose in a row of few images, where one of 100 is a point already.
_SLACK_IMAGES = 3
# Columns of the table: a row's key -> title.
_CLASSES = {"top1_agreement_percent": "same %", "onnx_top1_percent": "top-1 %"}
_COSINES = {"mean_cosine": "mean cos", "low_cosine": "low cos"}
_PIXELS = {"pixel_agreement_percent": "same %", "onnx_miou_percent": "mIoU %"}
_DIGITS = {**dict.fromkeys((*_CLASSES, *_PIXELS), 2), **dict.fromkeys(_COSINES, 4)}
# The trained network's own metric: a row's key -> its name.
_TRAINED = {"torch_top1_percent": "top-1", "torch_miou_percent": "mean IoU"}


def failures(
    rows: Sequence[Row], encoder: Sequence[EncoderRow], *, tolerance: float, int8: Limits
) -> list[str]:
    """A sentence for each limit that was exceeded.

    Args:
        tolerance: of the float file and the encoder, x the largest output of the torch network.
        int8: what the int8 file may lose.
    """
    most = max((row.parity.images for row in rows), default=0)
    sentences = []
    for row in rows:
        parity, where = row.parity, _where(row)
        if row.file == FLOAT:
            sentences += _exceeded(
                where, parity.noun, parity.max_abs_difference, parity.scale, tolerance
            )
            continue
        if clauses := int8.list_exceeded(parity, _slack(parity, most)):
            sentences.append(f"{where}: {', '.join(clauses)}")
    for maps in encoder:
        where = f"{ENCODER} at {maps.height}x{maps.width}, batch {maps.batch} on "
        where += _thread_count(maps.threads)
        sentences += _exceeded(where, "feature", maps.max_abs, maps.scale, tolerance)
    return sentences


def remarks(rows: Sequence[Row], int8: Limits) -> list[str]:
    """A sentence for each row whose drop the images cannot tell from its limit."""
    most = max((row.parity.images for row in rows), default=0)
    return [
        f"{_where(row)}, {row.parity.images} images: {clause}"
        for row in rows
        if row.file != FLOAT and (clause := int8.remark(row.parity, _slack(row.parity, most)))
    ]


def _slack(parity: OutputParity, most: int) -> int:
    return _SLACK_IMAGES if parity.images < most else 0


def _where(row: Row) -> str:
    where = f"{row.file} at batch {row.batch} on {_thread_count(row.threads)}"
    where += ", computed exactly" if row.exact else ""
    return where + (", at another image size" if row.resized else "")


def _exceeded(where: str, what: str, largest: float, scale: float, tolerance: float) -> list[str]:
    limit = tolerance * scale
    if largest <= limit:  # false where one is no number
        return []
    return [
        f"{where}: a {what} is off by up to {largest:.3g}, accepted is {limit:.3g} "
        f"(tolerance {tolerance:g} x largest {what} {scale:.3g})"
    ]


def _thread_count(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def json_rows(rows: Sequence[Row | EncoderRow]) -> list[dict[str, Any]]:
    """The rows as JSON, NaN and infinities as null."""
    return [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.as_dict().items()
        }
        for row in rows
    ]


def show(report: Mapping[str, Any]) -> None:
    """Print what `verify_bundle` returned."""
    opsets = ", ".join(f"{name} opset {opset}" for name, opset in report["opsets"].items())
    log(f"{report['files']} files as the manifest lists them; {opsets}")
    if report.get("not_compared"):
        log(report["not_compared"])
    else:
        _show_rows(report)
    for key, title in _TRAINED.items():
        same_size = [row for row in report["rows"] if key in row and not row.get("resized")]
        trained = {row["images"]: row[key] for row in same_size}
        for images, percent in sorted(trained.items()):
            log(f"trained network: {title} {percent:.2f} % of {images:,} images")
    if report["encoder"]:
        names = ("file", "batch", "threads", "images", "size", "max abs", "mean abs", "largest")
        table = _table("Feature maps against those of the trained encoder", names)
        for row in report["encoder"]:
            size = f"{row['height']}x{row['width']}"
            numbers = (_small(row[key]) for key in ("max_abs", "mean_abs", "scale"))
            table.add_row(*_first_cells(row), size, *numbers)
        console.print(table)
    if (report["int8"] or {}).get("full_range"):
        log(f"{INT8}: {FULL_RANGE}")
    if (report["int8"] or {}).get("flavour_note"):
        log(f"{INT8}: {report['int8']['flavour_note']}")
    if (report["int8"] or {}).get("refused"):
        log(f"{INT8} was left out of the bundle: {report['int8']['refused']}")
    for remark in report["remarks"]:
        log(f"undecided: {remark}")
    for failure in report["failures"]:
        log(f"failed: {failure}")
    if not report["failures"]:
        log("in order")


def _show_rows(report: Mapping[str, Any]) -> None:
    gives_embeddings = any("mean_cosine" in row for row in report["rows"])
    outputs, keys = ("embeddings", _COSINES) if gives_embeddings else ("logits", _CLASSES)
    keys = _PIXELS if any("torch_miou_percent" in row for row in report["rows"]) else keys
    table = _table(
        f"{report['student']}: {outputs} against those of the trained network",
        ("file", "batch", "threads", "images", "max abs", "mean abs", *keys.values()),
    )
    for row in report["rows"]:
        table.add_row(
            *_first_cells(row),
            _small(row["max_abs_difference"]),
            _small(row["mean_abs_difference"]),
            *("no number" if row[key] is None else f"{row[key]:.{_DIGITS[key]}f}" for key in keys),
        )
    console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _first_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    file = "int8, exact" if row.get("exact") else row["file"]
    if row.get("resized"):  # short, for tables of 80 columns
        file = "int8, resized" if file == INT8 else "float, resized"
    return file, str(row["batch"]), str(row["threads"]), f"{row['images']:,}"


def _small(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2e}"

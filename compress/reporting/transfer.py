"""The transfer section: every initialisation of a task side by side, its pictures and curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.reporting import formats, plots
from compress.reporting.collect import Run, metrics
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.tables import Cell, Column, Table

_PICTURES = {".png", ".jpg", ".jpeg"}


def transfers(run: Run) -> list[Block]:
    """One part per transfer task that has run."""
    blocks: list[Block] = [Heading("Transfer")]
    stages = run.transfers()
    if not stages:
        return [*blocks, Paragraph("No transfer stage has run.")]
    for stage in stages:
        blocks += _task(run, stage)
    return blocks


def _task(run: Run, stage: str) -> list[Block]:
    values, name = run.values(stage), stage.split("/", 1)[1]
    rows = values.get("rows") or []
    blocks: list[Block] = [Heading(name.replace("_", " ").capitalize(), level=3)]
    data = values.get("data") or {}
    sizes = ", ".join(
        f"{formats.count(data[key])} {word} images"
        for key, word in (("train_images", "training"), ("test_images", "test"))
        if data.get(key) is not None
    )
    about = f"Data: {data.get('name', 'unnamed')}{', ' + sizes if sizes else ''}."
    blocks.append(Paragraph(f"{_sentence(values.get('protocol'))} {about}".strip()))
    blocks.append(_table(rows, str(values.get("headline", "")), name))
    blocks += _curves(run, stage, rows, str(values.get("headline", "")))
    legend = str(values.get("legend") or "")
    blocks += _pictures(run.folder, stage, values.get("pictures") or [], legend)
    return blocks


def _sentence(text: Any) -> str:
    text = str(text or "").strip()
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _table(rows: list[Mapping[str, Any]], headline: str, name: str) -> Table:
    """The headline metric stands first."""
    keys = dict.fromkeys(key for row in rows for key in row.get("metrics") or {})
    ordered = [key for key in keys if key == headline] + [key for key in keys if key != headline]
    columns = (
        Column("Initialisation", is_number=False),
        Column("Student", is_number=False),
        *(Column(*_named(key)) for key in ordered),
        Column("Encoder loaded", "%"),
    )
    cells: list[list[Cell | str]] = [
        [
            str(row.get("init")),
            str(row.get("student", formats.MISSING)),
            *(_metric(row.get("metrics") or {}, key) for key in ordered),
            formats.decimal(row.get("matched_percent")),
        ]
        for row in rows
    ]
    return Table(columns, cells, f"Transfer to {name.replace('_', ' ')}")


def _named(key: str) -> tuple[str, str]:
    """A metric's key as header and unit: ap50_percent -> ("ap50", "%")."""
    for suffix, unit in (("_percent", "%"), ("_ms", "ms"), ("_points", "points")):
        if key.endswith(suffix):
            return key.removesuffix(suffix).replace("_", " "), unit
    return key.replace("_", " "), ""


def _metric(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if isinstance(value, float):
        return formats.decimal(value, 2 if key.endswith("_percent") else 4)
    return formats.plain(value)


def _curves(run: Run, stage: str, rows: list[Mapping[str, Any]], headline: str) -> list[Block]:
    inits = dict.fromkeys(str(row.get("init")) for row in rows)
    history = {init: metrics(run.folder / stage / init / "metrics.jsonl") for init in inits}
    header, unit = _named(headline)
    images = []
    for key, title in (
        (headline, f"{header} ({unit})" if unit else header),
        ("loss", "Training loss"),
    ):
        lines = [
            plots.Curve(init, _points(history[init], key), place)
            for place, init in enumerate(inits, 1)
        ]
        lines = [line for line in lines if line.points]
        if lines:
            plot = plots.curves(lines, "Epoch", title, salt=f"{stage}/{key}")
            alt = f"{title} per epoch of {', '.join(line.label for line in lines)}"
            file = f"figures/{stage.replace('/', '_')}_{key}.png"
            images.append(Image(file, alt, plot.png, plot.svg))
    name = stage.split("/", 1)[1].replace("_", " ")
    return [Figure(images, f"Learning curves of {name}.")] if images else []


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [row for row in rows if row.get(key) is not None]
    return [(float(row["epoch"]), float(row[key])) for row in found]


def _pictures(folder: Path, stage: str, names: list[str], legend: str) -> list[Block]:
    """Pictures inside the stage's own folder; anything else is left out."""
    root = (folder / stage).resolve()
    images = []
    for name in names:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.suffix.lower() in _PICTURES and path.is_file():
            label = path.stem.replace("_", " ")
            images.append(Image(f"{stage}/{name}", f"Examples: {label}", path.read_bytes()))
    labels = ", ".join(Path(image.file).stem.replace("_", " ") for image in images)
    caption = f"Examples, in order: {labels}. {legend}".strip()
    return [Figure(images, caption)] if images else []

"""The section on transfer: initialisations of a task side by side, their pictures and curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.comparison.accuracy import format_p_value
from compress.reporting import formats, plots
from compress.reporting.collect import RunData, metrics
from compress.reporting.document import Block, Figure, Heading, Image, Paragraph
from compress.reporting.tables import Column, ReportCell, ReportTable

# Words of metrics' keys that are written otherwise.
_TITLES = {
    **{key: key.upper() for key in ("ap", "ap50", "ap75", "map", "ece", "iou")},
    "miou": "mean IoU",
    "top1": "top-1",
    "top5": "top-5",
    "knn": "k-NN",
}
_PICTURES = {".png", ".jpg", ".jpeg"}


def transfers(run: RunData) -> list[Block]:
    """One part per transfer task that has run."""
    blocks: list[Block] = [Heading("Transfer")]
    stages = run.transfers()
    if not stages:
        return [*blocks, Paragraph(run.why_absent("transfer"))]
    blocks += _over_data_sets(run, stages)
    for stage in stages:
        blocks += _task(run, stage)
    return blocks


def _over_data_sets(run: RunData, stages: list[str]) -> list[Block]:
    """Initialisations x data sets for each task that has run on several, as the papers print it."""
    groups: dict[str, list[str]] = {}
    for stage in stages:
        groups.setdefault(str(run.values(stage).get("task")), []).append(stage)
    tables: list[Block] = []
    for task, several in groups.items():
        if len(several) < 2:
            continue
        values = {stage: run.values(stage) for stage in several}
        rows = {s: {r.get("init"): r for r in v.get("rows") or []} for s, v in values.items()}
        columns = [Column("Initialisation", is_number=False)]
        columns += [Column(_stage_title(s), _unit(values[s])) for s in several]
        cells: list[list[ReportCell | str]] = [
            [str(init), *(_metric(rows[s].get(init, {}), _headline(values[s])) for s in several)]
            for init in dict.fromkeys(init for one in rows.values() for init in one)
        ]
        title = f"{task.replace('_', ' ').capitalize()} over data sets"
        tables.append(ReportTable(columns, cells, title))
    return tables


def _stage_title(stage: str) -> str:
    return stage.split("/", 1)[1].replace("_", " ")


def _headline(values: Mapping[str, Any]) -> str:
    return str(values.get("headline", ""))


def _unit(values: Mapping[str, Any]) -> str:
    """top1_percent -> "top1, %"."""
    return ", ".join(filter(None, _header_and_unit(_headline(values))))


def _task(run: RunData, stage: str) -> list[Block]:
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


def _table(rows: list[Mapping[str, Any]], headline: str, name: str) -> ReportTable:
    """The headline metric stands first, then its difference to the reference."""
    keys = dict.fromkeys(key for row in rows for key in row.get("metrics") or {})
    ordered = [key for key in keys if key == headline] + [key for key in keys if key != headline]
    reference = _reference(rows)
    columns = (
        Column("Initialisation", is_number=False),
        Column("Student", is_number=False),
        *(Column(*_header_and_unit(key)) for key in ordered),
        *([Column(f"Difference to {reference}", "95 % interval")] if reference else []),
        Column("Seeds"),
        Column("Encoder loaded", "%"),
    )
    cells: list[list[ReportCell | str]] = [
        [
            str(row.get("init")),
            str(row.get("student", formats.MISSING)),
            *(_metric(row, key) for key in ordered),
            *([_difference(row, headline)] if reference else []),
            formats.count(len(row.get("per_seed") or [None])),
            formats.decimal(row.get("matched_percent")),
        ]
        for row in rows
    ]
    return ReportTable(columns, cells, f"Transfer to {name.replace('_', ' ')}")


def _reference(rows: list[Mapping[str, Any]]) -> str | None:
    """The initialisation to which the others are compared."""
    names = [row["against"]["reference"] for row in rows if row.get("against")]
    return str(names[0]) if names else None


def _difference(row: Mapping[str, Any], key: str) -> ReportCell:
    """Mean paired difference, and its interval: over the test images, else over the seeds."""
    against = row.get("against") or {}
    over_seeds = against.get("differences", {}).get(key)
    if over_seeds is None:
        return ReportCell(formats.MISSING, "reference")
    over_images = (against.get("over_images") or {}).get(key) or {}
    ends = over_images.get("interval") or over_seeds.get("interval")
    mean, p_value = formats.signed(over_seeds["mean"]), over_images.get("p_value")
    if ends is None:
        return ReportCell(mean, "no interval")
    low, high = (formats.signed(end) for end in ends)
    return ReportCell(
        mean, f"{low} to {high}" + (f", {format_p_value(p_value)}" if p_value is not None else "")
    )


def _header_and_unit(key: str) -> tuple[str, str]:
    """A metric's key as header and unit: ap50_percent -> ("AP50", "%")."""
    stem, unit = key, ""
    for suffix, of_suffix in (("_percent", "%"), ("_ms", "ms"), ("_points", "points")):
        if key.endswith(suffix):
            stem, unit = key.removesuffix(suffix), of_suffix
    words = stem.split("_")
    title = " ".join(_TITLES.get(word, word) for word in words)
    return title[:1].upper() + title[1:], unit


def _metric(row: Mapping[str, Any], key: str) -> ReportCell:
    """The mean over the seeds; their standard deviation in small print."""
    value, spread = (row.get("metrics") or {}).get(key), (row.get("spread") or {}).get(key)
    decimals = 2 if key.endswith("_percent") else 4
    if not isinstance(value, float):
        return ReportCell(formats.readable(value))
    note = "" if spread is None else f"± {formats.decimal(spread, decimals)}"
    return ReportCell(formats.decimal(value, decimals), note)


def _curves(run: RunData, stage: str, rows: list[Mapping[str, Any]], headline: str) -> list[Block]:
    inits = dict.fromkeys(str(row.get("init")) for row in rows)
    history = {init: metrics(_of_first_seed(run.folder / stage / init)) for init in inits}
    header, unit = _header_and_unit(headline)
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
            plot = plots.curves(
                lines, "Epoch", title, salt=f"{stage}/{key}", is_percent=key != "loss"
            )
            alt = f"{title} per epoch of {', '.join(line.label for line in lines)}"
            file = f"figures/{stage.replace('/', '_')}_{key}.png"
            images.append(Image(file, alt, plot.png, plot.svg))
    name = stage.split("/", 1)[1].replace("_", " ")
    return [Figure(images, f"Learning curves of {name}.")] if images else []


def _of_first_seed(folder: Path) -> Path:
    """The epochs of an init's training, of several seeds those of the first."""
    seeds = sorted(folder.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    return (seeds[0] if seeds else folder) / "metrics.jsonl"


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key) is not None]


def _pictures(folder: Path, stage: str, names: list[str], legend: str) -> list[Block]:
    """Pictures inside the stage's own folder; anything else is left out."""
    root = (folder / stage).resolve()
    images = []
    for name in names:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.suffix.lower() in _PICTURES and path.is_file():
            folder_name = Path(name).parts[0]  # of an init, unless all lie in one folder
            label = path.stem if folder_name in (name, "pictures") else folder_name
            label = label.replace("_", " ")
            images.append(Image(f"{stage}/{name}", f"Examples: {label}", path.read_bytes()))
    labels = ", ".join(image.alt.removeprefix("Examples: ") for image in images)
    caption = f"Examples, in order: {labels}. {legend}".strip()
    return [Figure(images, caption)] if images else []

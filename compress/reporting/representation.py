"""The section on representations: how alike those of students and teacher are, with pictures.

Its numbers are what `python -m eval.representation` wrote; `eval.representation` defines them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Document, Figure, Heading, Image, Paragraph
from compress.reporting.html import html
from compress.reporting.markdown import markdown
from compress.reporting.tables import Column, ReportTable
from compress.storage.files import read_mapping, write_text
from compress.storage.integrity import require_seal

FOLDER = "representation"
Values = Mapping[str, Any]

# Part -> its heading and what it is.
_TEXTS: Mapping[str, tuple[str, str]] = {
    "correlation": (
        "Correlations of the logits",
        "Pearson's correlations of the classes' logits over {images} test images; the number is "
        "the mean absolute difference to the teacher's over all pairs of different classes.",
    ),
    "tsne": (
        "Embeddings",
        "{images} test images of the first classes. The silhouette (-1 to 1, higher: classes "
        "farther apart) is that of the embeddings by class, not of their map in the plane.",
    ),
    "cka": (
        "CKA by stage",
        "Centred kernel alignment of the flattened maps of {images} test images, by the unbiased "
        "estimate over batches: 1 for maps that are equal up to rotation and scale, about 0 for "
        "unrelated ones. The RBF kernel's width is {rbf_fraction} of the median distance.",
    ),
    "entropy": (
        "Knowledge quantification",
        "Pixel-wise conditional entropy of {images} test images: how strong noise at a pixel may "
        "be before the embedding moves, in pixel values from 0 to 1. Visual concepts are the "
        "pixels below an image's mean. Their IoU between two augmented views says how steadily a "
        "network uses the same pixels (1/3: by chance); that of one view under two draws of noise "
        "is the most that {entropy_steps} steps can show.",
    ),
}


def representation(run: RunData) -> list[Block]:
    """The section of a run's report; empty where nothing was measured."""
    folder = run.folder / FOLDER
    if not (folder / "result.json").is_file():
        return []
    return blocks(_read(folder), folder, f"{FOLDER}/", _changed(run, _read(folder)["values"]))


def representation_values(run: RunData) -> Values:
    """The numbers alone; empty where nothing was measured."""
    folder = run.folder / FOLDER
    values: Values = _read(folder)["values"] if (folder / "result.json").is_file() else {}
    return values


def write_representation_report(folder: Path) -> Path:
    """Write report.md and report.html of networks that are of no run; the path of the latter."""
    result = _read(folder)
    title = f"Representations: {', '.join(result['values']['networks'])}"
    document = Document(title, blocks(result, folder, "", []))
    write_text(folder / "report.md", markdown(document))
    write_text(folder / "report.html", html(document))
    return folder / "report.html"


def blocks(result: Values, folder: Path, prefix: str, changed: list[str]) -> list[Block]:
    """The section of a result.

    Args:
        prefix: of the pictures' paths in the report.
        changed: networks that have been trained anew since.
    """
    values = result["values"]
    data, others = values["data"], [k for k in values["networks"] if k != values["teacher"]]
    text = (
        f"{', '.join(others)} against {values['teacher']} on test images of {data['name']}. "
        "CKA is that of the embeddings. All numbers are of one training each, whose chance they do "
        "not show."
    )
    parts: list[Block] = [Heading("Representation"), Paragraph(text)]
    if changed:
        again = f"Trained anew since this was measured: {', '.join(changed)}."
        parts.append(Paragraph(again, is_note=True))
    parts.append(summary_table(values))
    for name, part in values["parts"].items():
        heading, about = _TEXTS[name]
        parts.append(Heading(heading, level=3))
        if "skipped" in part:
            parts.append(Paragraph(f"Left out: {part['skipped']}."))
            continue
        parts.append(Paragraph(about.format(**{**values["settings"], **part})))
        if name in _TABLES:
            parts.append(_TABLES[name](values))
        for one in result["pictures"][name]:
            path = folder / one["file"]
            if path.is_file():
                image = Image(prefix + one["file"], one["alt"], path.read_bytes())
                parts.append(Figure([image], one["caption"]))
    return parts


def summary_table(values: Values) -> ReportTable:
    """One line for each network, the teacher first."""
    columns = (
        Column("Network", is_number=False),
        Column("Logits", "difference"),
        Column("Silhouette"),
        Column("CKA", "linear"),
        Column("CKA", "RBF"),
        Column("Entropy", "nats"),
        Column("IoU", "of concepts"),
    )
    rows = [
        [
            label,
            _cell(values, "correlation", "students", label, "mean_absolute_difference"),
            _cell(values, "tsne", "networks", label, "silhouette"),
            _cell(values, "cka", "students", label, "linear", "diagonal", -1, "cka"),
            _cell(values, "cka", "students", label, "rbf", "diagonal", -1, "cka"),
            _cell(values, "entropy", "networks", label, "mean_entropy_nats"),
            _cell(values, "entropy", "networks", label, "view_iou"),
        ]
        for label in values["networks"]
    ]
    return ReportTable(columns, rows, "Representations of the test images")


def _diagonals(values: Values) -> ReportTable:
    """CKA of each student's layers with the teacher's layers at the same place from the end."""
    columns = (
        Column("Student", is_number=False),
        Column("Teacher's layer", is_number=False),
        Column("Student's layer", is_number=False),
        Column("Linear CKA"),
        Column("RBF CKA"),
    )
    rows = [
        [label, linear["teacher"], linear["student"], *(_number(k["cka"]) for k in (linear, rbf))]
        for label, kernels in values["parts"]["cka"]["students"].items()
        for linear, rbf in zip(*(kernels[k]["diagonal"] for k in ("linear", "rbf")), strict=True)
    ]
    return ReportTable(columns, rows, "CKA of layers at the same place, counted from the last")


def _concepts(values: Values) -> ReportTable:
    """Entropy of each network, and the intersections of its visual concepts."""
    columns = (
        Column("Network", is_number=False),
        Column("Mean entropy", "nats per pixel"),
        Column("IoU of two views"),
        Column("IoU of one view", "other noise"),
        Column("IoU with the teacher"),
    )
    rows = [
        [
            label,
            *(_number(one[key]) for key in ("mean_entropy_nats", "view_iou", "same_view_iou")),
            _cell(values, "entropy", "students", label, "teacher_iou"),
        ]
        for label, one in values["parts"]["entropy"]["networks"].items()
    ]
    return ReportTable(columns, rows, "Entropy of pixels, and IoU of visual concepts")


_TABLES: Mapping[str, Callable[[Values], ReportTable]] = {
    "cka": _diagonals,
    "entropy": _concepts,
}


def _cell(values: Values, *path: str | int) -> str:
    place: Any = values["parts"]
    for key in path:
        if isinstance(key, str) and key not in place:
            return formats.MISSING
        place = place[key]
    return _number(place)


def _number(value: float | None) -> str:
    return formats.MISSING if value is None else formats.decimal(value, 3)


def _changed(run: RunData, values: Values) -> list[str]:
    """Networks whose weights are no longer those that were measured."""
    changed = []
    for label, network in values["networks"].items():
        number = int(label.removeprefix("teacher-")) - 1 if label.startswith("teacher-") else 0
        stage, file = (
            ("teacher", f"{number}/teacher.safetensors")
            if label.startswith("teacher")
            else (f"distill/{label}", "student.safetensors")
        )
        entry = run.results.get(stage, {}).get("files", {}).get(file, {})
        if entry.get("sha256") not in (None, network["sha256"]):
            changed.append(label)
    return changed


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    result = read_mapping(path)
    require_seal(result, path, ())
    return result

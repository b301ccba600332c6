"""The line above the report of a run that has not come to its end."""

from collections.abc import Iterator
from typing import Any

from compress.reporting.collect import RunData, method_labels, metrics
from compress.reporting.document import Block, Paragraph

_SECTIONS = ("fuse", "account", "export")


def progress(run: RunData) -> list[Block]:
    """What is under way and what is still to come; nothing of a run that is finished."""
    missing = [stage for stage in _planned(run) if stage not in run.results]
    if not missing or not run.resolved:
        return []
    texts = []
    started = [stage for stage in missing if (run.folder / stage / "fields.json").is_file()]
    if started:
        texts.append(f"{'; '.join(_epochs(run, stage) for stage in started)}.")
    waiting = [stage for stage in missing if stage not in started]
    if waiting:
        texts.append(f"Still to come: {', '.join(waiting)}.")
    return [Paragraph(f"This run is not finished. {' '.join(texts)}", is_lead=True)]


def _planned(run: RunData) -> Iterator[str]:
    """The stages of the recipe; those of transfer count together."""
    resolved = run.resolved
    yield "teacher"
    for trial in range(int(resolved.get("trials") or 1)):
        ending = f"-trial{trial}" if trial else ""
        yield from (f"distill/{label}{ending}" for label in method_labels(resolved))
    yield from (section for section in _SECTIONS if resolved.get(section) is not None)
    if len(resolved.get("transfer") or []) > len(run.transfers()):
        yield "transfer"


def _epochs(run: RunData, stage: str) -> str:
    """The stage, with the epochs that its training has behind it."""
    section: Any = run.resolved.get("distill") if stage.startswith("distill/") else None
    rows = metrics(run.folder / stage / "metrics.jsonl")
    if section is None or not rows:
        return f"{stage} has begun"
    return f"{stage} has {len(rows)} of {section['train']['epochs']} epochs"

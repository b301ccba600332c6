"""The first paragraph of the report and its key figures."""

from collections.abc import Sequence
from typing import Any

from compress.comparison.recommendation import rule
from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.differences import interval_text, verdict
from compress.reporting.document import Block, KeyFigures, Paragraph
from compress.reporting.network import BASELINE, Network


def summary(run: RunData) -> list[Block]:
    """Subject, size and accuracy of the recommended student, and the rule that chose it."""
    network = run.recommended
    if network is None:
        return [Paragraph(f"{_subject(run)} No student has been trained yet.", is_lead=True)]
    teacher = run.teachers[0] if run.teachers else None
    text = " ".join(
        filter(None, (_subject(run), _accuracy(run, network, teacher), _smaller(network)))
    )
    return [
        Paragraph(text, is_lead=True),
        KeyFigures(_key_figures(run, network, teacher)),
        Paragraph(f"Rule of the recommendation: {rule(run.headline)}.{_why(run)}", is_note=True),
    ]


def _subject(run: RunData) -> str:
    teachers = " and ".join(row.model for row in run.teachers)
    part: Any = run.resolved.get("student")
    model = part.get("model") if isinstance(part, dict) else None
    name = model.get("name") if isinstance(model, dict) else model
    kind = "teachers" if len(run.teachers) > 1 else "teacher"
    return f"The {kind} {teachers} was compressed into the student {name or ''}".strip() + "."


def _accuracy(run: RunData, network: Network, teacher: Network | None) -> str:
    name = f"trained alone ({BASELINE})" if network.label == BASELINE else network.label
    text = (
        f"The recommended student, {name}, classifies "
        f"{formats.percent(network.top1_percent)} of {formats.count(network.test_images)} test "
        "images correctly"
    )
    versus = network.minus(teacher)
    if teacher is None or versus is None:
        return f"{text}."
    return (
        f"{text}, the teacher {formats.percent(teacher.top1_percent)} "
        f"(difference {interval_text(versus)} points, {verdict(versus)})."
    )


def _smaller(network: Network) -> str:
    parameters, ratio = network.account.get("parameters"), _ratio(network)
    if parameters is None or ratio is None:
        return ""
    fewer = f"{formats.percent(ratio)} fewer than the teacher"
    return f"It has {formats.count(parameters)} parameters, {fewer}."


def _ratio(row: Network) -> float | None:
    ratio = row.account.get("pruning_ratio_percent")
    return None if ratio is None else float(ratio)


def _why(run: RunData) -> str:
    choice = run.recommendation
    if choice is None or choice.label == choice.most_accurate:
        return ""
    return (
        f" {choice.most_accurate} is the most accurate; {choice.label} is smaller, and their "
        f"difference is {interval_text(choice.difference)} points: {verdict(choice.difference)}."
    )


def _key_figures(
    run: RunData, network: Network, teacher: Network | None
) -> Sequence[tuple[str, str, str]]:
    cost, big = network.account, teacher.account if teacher else {}
    top1 = formats.percent(teacher.top1_percent) if teacher else ""
    items = [
        (
            formats.percent(network.top1_percent),
            f"Top-1, {run.headline}",
            f"teacher {top1}" if top1 else "",
        )
    ]
    if cost.get("size_bytes") is not None:
        note = f"teacher {formats.megabytes(big.get('size_bytes'))} MB" if big else ""
        items.append((f"{formats.megabytes(cost['size_bytes'])} MB", "Size", note))
    if cost.get("macs") is not None:
        note = f"teacher {formats.millions(big.get('macs'))} million" if big else ""
        items.append((f"{formats.millions(cost['macs'])} million", "MACs per image", note))
    latency = network.latency.get("1", {}).get("median_ms")
    if latency is not None:
        other = teacher.latency.get("1", {}).get("median_ms") if teacher else None
        note = f"teacher {formats.milliseconds(other)} ms" if other is not None else ""
        items.append((f"{formats.milliseconds(latency)} ms", "Latency, one image", note))
    return items

"""The first screen of the report: what ships, and the rule that chose it."""

from typing import Any

from compress.comparison.recommendation import rule
from compress.comparison.students import BASELINE
from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.differences import interval_text, verdict
from compress.reporting.document import Block, Paragraph
from compress.reporting.headline import Line, Lines, headline, ratio_words, read_lines
from compress.reporting.network import Network


def summary(run: RunData) -> list[Block]:
    """The student that ships and its files, or where nothing does, the recommended student."""
    if run.values("export"):
        lines = read_lines(run)
        lead = Paragraph(_shipped(run, lines), is_lead=True)
        return [*_remark(run), lead, *headline(run, lines), *_rule(run)]
    network = run.recommended
    if network is None:
        return [Paragraph(f"{_subject(run)} No student has been trained yet.", is_lead=True)]
    teacher = run.teachers[0] if run.teachers else None
    parts = (_subject(run), _accuracy(run, network, teacher), _smaller(network))
    return [
        Paragraph(f"{' '.join(filter(None, parts))} {_nothing_ships(run)}", is_lead=True),
        *_rule(run),
    ]


def _remark(run: RunData) -> list[Block]:
    """Another student than the recommended one ships: said before anything else."""
    remark = run.values("export").get("remark")
    choice, label = run.recommendation, run.values("export").get("student")
    if not remark and choice is not None and label not in (None, choice.label):
        remark = f"the bundle holds {label}; by the rule below {choice.label} is recommended"
    return [Paragraph(f"Not the recommended student: {remark}.", is_lead=True)] if remark else []


def _shipped(run: RunData, lines: Lines) -> str:
    """Which student ships, and how each of its files compares with the teacher."""
    teacher = lines.teacher
    label = run.values("export").get("student")
    best = run.recommended
    which = "the recommended student" if best and best.label == label else "the student"
    alone = ", trained alone" if label == BASELINE else ""
    texts = [f"{_subject(run)} What ships is {which} {label}{alone}."]
    for row in lines.files:
        if row.metric_percent is not None:
            texts.append(_embeds(row, lines) if row.cosine is not None else _segments(row, lines))
        if row.score is None:
            continue
        text = f"{row.name} classifies {formats.percent(row.score.top1_percent)}"
        if len(texts) == 1:
            text += f" of {formats.count(row.score.test_images)} test images correctly"
            if teacher is not None and teacher.score is not None:
                text += f", the teacher {formats.percent(teacher.score.top1_percent)}"
        difference = row.minus(teacher) if teacher else None
        if difference is not None:
            text += f" ({verdict(difference)})"
        ratios = " and ".join(filter(None, ratio_words(row, teacher)))
        texts.append(f"{text}{'; it is ' + ratios if ratios else ''}.")
    return " ".join(texts)


def _embeds(row: Line, lines: Lines) -> str:
    """A file that gives embeddings: how near it is to the student, and the metric of that."""
    text = f"The embeddings of {row.name} have a mean cosine of {formats.decimal(row.cosine, 4)}"
    text += (
        f" with those of the trained student, whose {lines.title} with the teacher is "
        f"{formats.percent(row.metric_percent)} on {formats.count(lines.images)} test images"
    )
    ratios = " and ".join(filter(None, ratio_words(row, lines.teacher)))
    return f"{text}{'; it is ' + ratios if ratios else ''}."


def _segments(row: Line, lines: Lines) -> str:
    """A file that segments: its metric beside the teacher's."""
    text = (
        f"{row.name} has a {lines.title[:1].lower()}{lines.title[1:]} of "
        f"{formats.percent(row.metric_percent)} on "
        f"{formats.count(lines.images)} test images"
    )
    teacher = lines.teacher
    if teacher is not None and teacher.metric_percent is not None:
        text += f", the teacher {formats.percent(teacher.metric_percent)}"
    ratios = " and ".join(filter(None, ratio_words(row, teacher)))
    return f"{text}{'; it is ' + ratios if ratios else ''}."


def _nothing_ships(run: RunData) -> str:
    return f"Nothing ships yet. {run.why_absent('export')}"


def _rule(run: RunData) -> list[Block]:
    if not run.task.is_accuracy:
        text = f"Rule of the recommendation: the highest {run.task.title} ({run.headline})."
        return [Paragraph(text, is_note=True)]
    if run.recommendation is None:
        return []
    text = f"Rule of the recommendation: {rule(run.headline)}.{_why(run)}"
    return [Paragraph(text, is_note=True)]


def _subject(run: RunData) -> str:
    teachers = " and ".join(row.model for row in run.teachers)
    part: Any = run.resolved.get("student")
    model = part.get("model") if isinstance(part, dict) else None
    name = model.get("name") if isinstance(model, dict) else model
    kind = "teachers" if len(run.teachers) > 1 else "teacher"
    return f"The {kind} {teachers} was compressed into the student {name or ''}".strip() + "."


def _accuracy(run: RunData, network: Network, teacher: Network | None) -> str:
    name = f"trained alone ({BASELINE})" if network.label == BASELINE else network.label
    if not run.task.is_accuracy:
        return f"The recommended student is {name}: {run.task.describe(network.trials[0])}."
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

"""The result table, how to read it, and the table of the trainings behind it."""

from dataclasses import replace
from typing import Any

from compress.comparison.accuracy import NOT_DISTINGUISHABLE, standard_error_percent
from compress.comparison.students import BASELINE, TOP1
from compress.reporting import formats, segmentation
from compress.reporting.collect import RunData
from compress.reporting.differences import PAIRED, UNPAIRED, difference_cell
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.network import Network
from compress.reporting.tables import Column, ReportCell, ReportTable


def result_table(run: RunData) -> ReportTable:
    """Every network with its accuracy, its distance to the student alone, and its cost."""
    columns = (
        Column("Network", is_number=False),
        Column(f"{run.task.title}, {run.headline}", "%"),
        Column("Standard error", "points"),
        Column("Best on test", "%, optimistic"),
        Column("Difference to student alone", "points"),
        Column("Parameters"),
        Column("Pruning ratio", "%"),
        Column("MACs", "millions"),
        Column("Size", "MB"),
        *(Column(f"Latency, batch {size}", "ms") for size in _batch_sizes(run)),
        *(Column(title, "%") for title in run.task.judged.values()),
    )
    chosen = run.recommended
    place = run.networks.index(chosen) if chosen else None
    rows = [_result_row(run, row, is_chosen=row is chosen) for row in run.networks]
    return ReportTable(columns, rows, "Accuracy and cost of every network", highlight=place)


def short_table(run: RunData) -> ReportTable:
    """A table for 80 columns: accuracy, difference, parameters, size, latency."""
    whole, judged = result_table(run), run.task.judged.values()
    last = len(whole.columns)
    table = whole.select((0, 1, *range(last - len(judged), last), 4, 5, 8, 9))
    columns = (
        table.columns[0],
        Column(run.task.title, "%"),
        *(Column(title, "%") for title in judged),
        Column("Against alone", "points"),
        Column("Parameters"),
        Column("Size", "MB"),
        Column("Latency", "ms, batch 1"),
    )
    caption = ""
    if run.baseline is not None:
        caption = f"Without a word, a difference is {NOT_DISTINGUISHABLE}."
    rows = [[_shorten_note(cell) for cell in row] for row in table.rows]
    short = replace(table, columns=columns, rows=rows, caption=caption)
    return short.without_empty_columns()


def _shorten_note(cell: ReportCell | str) -> ReportCell | str:
    """Leave "not distinguishable" and p out of a note: a terminal has no room for them."""
    if not isinstance(cell, ReportCell):
        return cell
    note = cell.note.partition(",")[0]
    return ReportCell(cell.text, "" if note == NOT_DISTINGUISHABLE else note)


def results(run: RunData) -> list[Block]:
    """The result table, and how to read it."""
    blocks: list[Block] = [Heading("Results")]
    if not run.networks:
        return [*blocks, Paragraph("Neither the teacher nor the distill stage has run.")]
    blocks += [
        result_table(run).without_empty_columns(),
        Paragraph(_explanation(run), is_note=True),
    ]
    if not run.students:
        blocks.append(Paragraph("The distill stage has not run: there is no student yet."))
    return blocks


def _result_row(run: RunData, row: Network, *, is_chosen: bool) -> list[ReportCell | str]:
    cost, trials = row.account, len(row.trials)
    note = "recommended" if is_chosen else ("teacher" if row.is_teacher else "")
    title = row.model if row.is_teacher else row.title
    return [
        ReportCell(title, note),
        ReportCell(
            formats.mean_and_deviation(row.percents(run.task.metric)),
            f"{trials} trials" if trials > 1 else "",
        ),
        formats.decimal(row.standard_error),
        formats.mean_and_deviation(row.percents(f"best_on_test_{run.task.metric}")),
        _difference(run, row),
        formats.count(cost.get("parameters")),
        formats.decimal(cost.get("pruning_ratio_percent")),
        formats.millions(cost.get("macs")),
        formats.megabytes(cost.get("size_bytes")),
        *(formats.milliseconds(row.latency.get(n, {}).get("median_ms")) for n in _batch_sizes(run)),
        *(formats.mean_and_deviation(row.percents(key)) for key in run.task.judged),
    ]


def _batch_sizes(run: RunData) -> list[str]:
    """The smallest and the largest batch that were timed."""
    sizes = sorted({size for row in run.networks for size in row.latency}, key=int)
    return list(dict.fromkeys([sizes[0], sizes[-1]])) if sizes else ["1", "64"]


def _difference(run: RunData, row: Network) -> ReportCell:
    if row is run.baseline:
        return ReportCell("reference")
    if run.task.is_dense:
        return difference_cell(segmentation.minus(run, row, run.baseline))
    return difference_cell(row.minus(run.baseline))


def _explanation(run: RunData) -> str:
    if not run.task.is_accuracy:
        return run.task.about
    text = "Standard error of an accuracy p on n test images: sqrt(p (1 - p) / n)."
    rows = [row for row in run.networks if row is not run.baseline]
    differences = [one for one in (row.minus(run.baseline) for row in rows) if one is not None]
    if any(one.is_paired for one in differences):
        text += f" {PAIRED}"
    if any(not one.is_paired for one in differences):
        text += f" {UNPAIRED}"
    if run.baseline is None:
        text += f" No student was trained alone ({BASELINE}), so no difference is given."
    if any(len(row.trials) > 1 for row in run.students):
        text += " Accuracies of several trials: mean ± standard deviation."
    return text


def trainings(run: RunData) -> list[Block]:
    """Every training with its settings, one line each."""
    return [Heading("Trainings"), _training_table(run)] if run.networks else []


def _training_table(run: RunData) -> ReportTable:
    columns = (
        Column("Training", is_number=False),
        Column("Trial"),
        Column("How", is_number=False),
        Column("Weights of ce, kd, method", is_number=False),
        Column("Epochs"),
        Column("Test images"),
        Column(
            f"{run.task.title}, {run.headline}",
            "% ± standard error" if run.task.is_accuracy else "%",
        ),
        Column("Best on test", "%, optimistic"),
        Column("Epoch of the result, of the best"),
        Column(f"{run.task.title} of others, {run.headline}", "%", is_number=False),
    )
    metric = run.task.metric
    rows = [_training(row, trial, metric) for row in run.networks for trial in row.trials]
    return ReportTable(columns, rows, "Trainings, one line each").without_empty_columns()


def _others(trial: Any, metric: str) -> str:
    """The metric of networks evaluated beside what ships, and before a training after it."""
    key = f"{metric}/"
    others = {k.removeprefix(key): v for k, v in trial.items() if k.startswith(key)}
    before = (trial.get("main_training") or {}).get(metric)
    others |= {} if before is None else {"main training": before}
    return ", ".join(f"{name} {formats.decimal(value)}" for name, value in others.items())


def _training(row: Network, trial: Any, metric: str) -> list[ReportCell | str]:
    value, images = trial.get(metric), trial.get("test_images")
    error = ""
    if value is not None and images and metric == TOP1:
        error = f" ± {formats.decimal(standard_error_percent(value, images))}"
    selected = trial.get("selected_epoch", trial.get("epochs"))
    weights = trial.get("weights") or {}
    return [
        row.title,
        formats.MISSING if row.is_teacher else formats.count(trial.get("trial", 0)),
        formats.readable(trial.get("source"))
        if row.is_teacher
        else formats.arguments(trial.get("method")),
        ", ".join(formats.readable(weights.get(key, 0)) for key in ("ce", "kd", "method"))
        if weights
        else formats.MISSING,
        formats.count(trial.get("epochs")),
        formats.count(images),
        f"{formats.decimal(value)}{error}",
        formats.decimal(trial.get(f"best_on_test_{metric}")),
        f"{formats.count(selected)}, {formats.count(trial.get('best_on_test_epoch'))}",
        _others(trial, metric) or formats.MISSING,
    ]

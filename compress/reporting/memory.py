"""The section on training memory: the peak of a step and the method's own state."""

from compress.reporting import formats
from compress.reporting.collect import RunData
from compress.reporting.document import Block, Heading, Paragraph
from compress.reporting.tables import Column, ReportTable


def training_memory(run: RunData) -> list[Block]:
    """One line per trained student; empty if no training was measured."""
    memory = student_memory(run)
    if not memory:
        return []
    columns = [
        Column("Student", is_number=False),
        Column("Peak of a step", "MB"),
        Column("Method's own state", "MB"),
        Column("Batch", "images"),
    ]
    has_device = any("device_peak_bytes" in row for row in memory.values())
    if has_device:
        columns.append(Column("Peak on the device", "MB"))
    titles = {row.label: row.title for row in run.students}
    rows = [
        [
            titles[label],
            formats.megabytes(row.get("step_bytes")),
            formats.megabytes(row.get("method_bytes")) if row.get("method_bytes") else "0",
            formats.count(row.get("batch")),
            *([formats.megabytes(row.get("device_peak_bytes"))] if has_device else []),
        ]
        for label, row in memory.items()
    ]
    return [
        Heading("Training memory"),
        ReportTable(
            columns, rows, "Memory of one step, and of what the method adds to the student"
        ),
        Paragraph(_explanation(has_device=has_device), is_note=True),
    ]


def student_memory(run: RunData) -> dict[str, dict[str, int]]:
    """By student, the largest numbers of its trials; students without measurement are left out."""
    memory: dict[str, dict[str, int]] = {row.label: {} for row in run.students}
    for stage in run.results:
        label = str(run.values(stage).get("label", stage.split("/")[-1]))
        if stage.startswith("distill/"):
            for key, number in (run.measured(stage).get("memory") or {}).items():
                memory[label][key] = max(number, memory[label].get(key, 0))
    return {label: row for label, row in memory.items() if row}


def _explanation(*, has_device: bool) -> str:
    text = (
        "Peak of a step: the most bytes of tensors alive at once in one eager forward and backward "
        "of the batch, activations, gradients and what teachers show included; parameters, "
        "buffers, the batch and the optimiser are not. State: parameters and buffers of the method."
    )
    device = " On the device: the most that was allocated during the main training, of everything."
    return text + (device if has_device else "")

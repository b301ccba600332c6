"""The report of a run directory: report.md, report.html, report.json and a table for the terminal.

from compress.reporting import write_report
page = write_report(Path("runs/cifar100"))  # the path of report.html
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.reporting.report import terminal_table, write_report

__all__ = ["terminal_table", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the report when it is used: it needs matplotlib."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module("compress.reporting.report"), name)

"""The report of a run directory: report.md, report.html, report.json and tables for the terminal.

from compress.reporting import write_report
page = write_report(Path("runs/cifar100"))  # the path of report.html
"""

from typing import TYPE_CHECKING

from compress import import_lazily

if TYPE_CHECKING:
    from compress.reporting.report import terminal_tables, write_report

__all__ = ["terminal_tables", "write_report"]

# The report needs matplotlib.
__getattr__ = import_lazily(__name__, dict.fromkeys(__all__, "compress.reporting.report"))

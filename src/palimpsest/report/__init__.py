"""The report: one page that shows what was erased, what came back, and the numbers for both."""

from palimpsest.report.page import write_report

__all__ = ["write_report"]

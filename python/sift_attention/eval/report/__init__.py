"""The report of an evaluation: tables, findings and plots from its results.json."""

from .write import write_report

__all__ = ["write_report"]

"""Reports: what a replay, a study or a validation found (`.content`), as one HTML file that opens offline."""

from experiments.report.page import write_figures, write_report

__all__ = ["write_figures", "write_report"]

"""Reports: what a replay, a study or a validation found, as one HTML file that opens offline."""

from experiments.report.content import (
    CurvePoint,
    HeatMap,
    PolicyRow,
    ReportContent,
    Validation,
)
from experiments.report.page import write_report

__all__ = ["CurvePoint", "HeatMap", "PolicyRow", "ReportContent", "Validation", "write_report"]

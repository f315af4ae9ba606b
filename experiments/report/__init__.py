"""Reports: what a replay, a study or a validation found, as one HTML file that opens offline."""

from experiments.report.content import (
    CurvePoint,
    CurveSet,
    HeatMap,
    PolicyRow,
    RegretRow,
    ReportContent,
    Setting,
    Validation,
    Verdict,
)
from experiments.report.page import write_report

__all__ = [
    "CurvePoint",
    "CurveSet",
    "HeatMap",
    "PolicyRow",
    "RegretRow",
    "ReportContent",
    "Setting",
    "Validation",
    "Verdict",
    "write_report",
]

"""Reports: what a replay, a study or a validation found, as one HTML file that opens offline."""

from experiments.report.content import (
    CurvePoint,
    CurveSet,
    HeatMap,
    PolicyRow,
    RegretRow,
    ReportContent,
    SearchRound,
    Setting,
    TokenTimeline,
    Validation,
    Verdict,
    Work,
)
from experiments.report.page import write_figures, write_report

__all__ = [
    "CurvePoint",
    "CurveSet",
    "HeatMap",
    "PolicyRow",
    "RegretRow",
    "ReportContent",
    "SearchRound",
    "Setting",
    "TokenTimeline",
    "Validation",
    "Verdict",
    "Work",
    "write_figures",
    "write_report",
]

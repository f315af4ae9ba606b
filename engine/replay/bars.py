"""A timeline's log as bars: one for each piece of work, in the lane that did it."""

from typing import Any

import numpy as np

from engine.simulator import log
from engine.simulator.timeline import CAUSES

LANES = ("compute", "CPU", "link", "disk")
WORK = {
    log.DENSE_PART: ("compute", "dense part"),
    log.OVERHEAD_PART: ("compute", "overhead, readback"),
    log.ASKING: ("compute", "overhead, readback"),
    log.EXPERT: ("compute", "expert"),
    log.CPU_EXPERT: ("CPU", "expert"),
    log.DISK_READ: ("disk", "read"),
}
# Okabe & Ito, "Color Universal Design" (2008).
COLOURS = {
    "dense part": "#56B4E9",
    "overhead, readback": "#b7bcc1",
    "expert": "#0072B2",
    "wait": "#f3f1ec",
    "demand copy": "#D55E00",
    "prefetch": "#009E73",
    "admitted": "#56641a",
    "prefetch, demanded meanwhile": "#E69F00",
    "read": "#CC79A7",
}
COPY = {
    log.COPY_DEMAND: "demand copy",
    log.COPY_AHEAD: "prefetch",
    log.COPY_ADMITTED: "admitted",
    log.COPY_LATE: "prefetch, demanded meanwhile",
}


def bars(rows: np.ndarray, experts: int) -> list[dict[str, Any]]:
    """One record per row of the log: lane, kind, label, begin and end in milliseconds from the first."""
    found = []
    origin = int(rows[:, log.BEGIN].min(initial=2**62))
    for row in rows.tolist():
        what, key = row[log.WHAT], row[log.KEY]
        if what == log.COPY:
            lane, kind = "link", COPY[row[log.KIND]]
        elif what == log.WAIT:
            lane, kind = "compute", "wait"
        else:
            lane, kind = WORK[what]
        label = CAUSES[row[log.KIND]].split("_")[0] if what == log.WAIT else str(key % experts) if key >= 0 else ""
        begin, end = ((row[column] - origin) / 1e6 for column in (log.BEGIN, log.END))
        place = {"begin": begin, "end": end, "middle": (begin + end) / 2}
        found.append({"lane": lane, "kind": kind, "label": label} | place)
    return found

"""A replay's timeline as a file that trace viewers open: Chrome Trace Event JSON, which Perfetto reads, too.

One lane for each thing that works (compute stream, each copy engine, disk, CPU), one lane of visits above them, and
an arrow from every copy to the computation that used what it brought. Format: "Trace Event Format" (Google), complete
events (`X`), flow events (`s`, `f`) and metadata (`M`); times are microseconds, kept to the nanosecond as fractions.
"""

import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.plan.plan import Plan
from engine.replay.passes import Replayed
from engine.simulator import log
from engine.simulator.timeline import CAUSES
from policies.events import ADMIT, BYPASS, HIT, HIT_PINNED, HIT_PREFETCHED, HOST, LOAD, PREFETCH
from policies.tiered_cache import TIERS
from tracekit.demand import step_starts
from tracekit.durable import check_place, reporting, write_synced
from tracekit.errors import PlanError
from tracekit.trace import Trace

STEPS = 4  # in a timeline that nobody chose the steps of
MOST_STEPS = 2_000  # viewers hold no more

PROCESS = 1  # not 0: to viewers that is the idle process, and its thread 0 the idle thread
VISITS, COMPUTE, CPU, DISK, LINK = range(1, 6)  # lanes, top to bottom; a second copy engine has the lane LINK + 1
LANES = {VISITS: "visits", COMPUTE: "compute stream", CPU: "CPU", DISK: "disk"}
LANE_OF = {log.CPU_EXPERT: CPU, log.DISK_READ: DISK}
NAMES = {
    log.DENSE_PART: "dense part",
    log.OVERHEAD_PART: "overhead and gate readback",
    log.ASKING: "asking for copies",
    log.DISK_READ: "read",
}
HOW = {
    HIT: "kept",
    HIT_PINNED: "pinned",
    HIT_PREFETCHED: "prefetched",
    LOAD: "loaded",
    BYPASS: "bypass",
    HOST: "on the host",
    ADMIT: "on the host, admitted",
    PREFETCH: "prefetch",
}
COPIES = {
    **{log.COPY_DEMAND: "demand copy", log.COPY_AHEAD: "prefetch", log.COPY_LATE: "prefetch, demanded meanwhile"},
    log.COPY_ADMITTED: "admitted copy",
}


def events_of(
    rows: np.ndarray, layers: int, experts: int, causes: Sequence[str], step_ids: Sequence[int] | np.ndarray
) -> list[dict[str, Any]]:
    """The events of a trace file.

    Args:
        rows: i64 [n, 8], the simulator's log.
        layers: MoE layers, so that visit `v` is step `v // layers` at layer `v % layers`.
        experts: experts per layer.
        causes: names of the stalls that `WAIT` rows number.
        step_ids: the trace's own number of each step.
    """
    events = [_metadata("process_name", VISITS, name="simulated machine")]
    engines = int(rows[:, log.ENGINE].max(initial=0)) + 1
    lanes = LANES | {LINK + n: "link" if engines == 1 else f"link, engine {n}" for n in range(engines)}
    for lane, name in lanes.items():
        events.append(_metadata("thread_name", lane, name=name))
        events.append(_metadata("thread_sort_index", lane, sort_index=lane))
    events += _visits(rows, layers, step_ids)
    for row in rows.tolist():
        visit, key = row[log.VISIT], row[log.KEY]
        about = {"step": int(step_ids[visit // layers]), "layer": visit % layers}
        if key >= 0:
            of_copy, tier = key // experts % layers, TIERS[key // experts // layers]
            about |= {"expert": key % experts, "expert_layer": of_copy, "slot": row[log.SLOT]}
            about |= {"tier": tier} if tier != TIERS[0] else {}
        events.append(_slice(_lane(row), _name(row, causes, about), row, about))
    events += _arrows(rows)
    return events


def write_timeline(path: str | os.PathLike[str], events: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write a trace file, whole or not at all; compressed when its name ends in .gz. The same events, the same bytes.

    `about` goes into the file's metadata. Raises TraceError when the file cannot be written.
    """
    target = Path(path)
    check_place(target)
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}, separators=(",", ":"))
    data = gzip.compress(text.encode(), mtime=0) if target.suffix == ".gz" else text.encode()
    with reporting(target):
        write_synced(target, lambda file: file.write(data))


def timeline_window(text: str | None, steps: int) -> range:
    """`A:B` as the steps from A to B (excluded) of a trace with so many, by running number; None: some in the middle.

    Raises PlanError.
    """
    if text is None:
        first = max(0, steps // 2 - STEPS // 2)
        return range(first, min(first + STEPS, steps))
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    window = range(0) if match is None else range(int(match[1]), min(int(match[2]), steps))
    if not window:
        raise PlanError(f"steps {text!r} of the timeline: give A:B with 0 <= A < B; the trace has {steps} steps")
    if len(window) > MOST_STEPS:
        raise PlanError(f"steps {text!r} of the timeline: at most {MOST_STEPS} steps, viewers hold no more")
    return window


def save_timeline(path: Path, trace: Trace, done: Replayed, plan: Plan, hardware: str | None) -> None:
    """Write what the timeline of a finished, timed replay logged. Raises TraceError when that is not possible."""
    assert done.timeline is not None
    step_ids = trace.step[step_starts(trace.step)[:-1]]
    events = events_of(done.timeline.log, trace.layers, trace.num_experts, CAUSES, step_ids)
    about = {"trace": str(trace.path), "trace_digest": trace.digest, "hardware": hardware, "plan": plan.to_toml()}
    write_timeline(path, events, about)


def _lane(row: list[int]) -> int:
    if row[log.WHAT] == log.COPY:
        return LINK + row[log.ENGINE]
    return LANE_OF.get(row[log.WHAT], COMPUTE)


def _name(row: list[int], causes: Sequence[str], about: dict[str, Any]) -> str:
    what, kind = row[log.WHAT], row[log.KIND]
    expert = f"L{about['expert_layer']} E{about['expert']}" if "expert" in about else ""
    expert += f" {about['tier']}" if "tier" in about else ""
    if what == log.WAIT:
        return f"wait: {causes[kind].replace('_', ' ')}"
    if what == log.COPY:
        about["copy"] = COPIES[kind]
        return f"{COPIES[kind]} {expert}"
    if what in (log.EXPERT, log.CPU_EXPERT):
        about["came"] = HOW[kind]
        return f"expert {expert}"
    if what == log.ASKING:
        about["copies"] = kind
    return f"{NAMES[what]} {expert}".rstrip()


def _visits(rows: np.ndarray, layers: int, step_ids: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
    """One slice per visit, from its dense part to the end of its last computation."""
    mine = rows[np.isin(rows[:, log.WHAT], (log.DENSE_PART, log.OVERHEAD_PART, log.EXPERT, log.WAIT, log.CPU_EXPERT))]
    for visit in np.unique(mine[:, log.VISIT]).tolist():
        part = mine[mine[:, log.VISIT] == visit]
        row = [0] * log.COLUMNS
        row[log.BEGIN], row[log.END] = int(part[:, log.BEGIN].min()), int(part[:, log.END].max())
        step, layer = int(step_ids[visit // layers]), visit % layers
        yield _slice(VISITS, f"step {step} layer {layer}", row, {"step": step, "layer": layer})


def _arrows(rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """From the end of the last copy of an expert to the computation that was the first to use it."""
    arrived: dict[int, list[int]] = {}
    number = 0
    order = np.argsort(np.where(rows[:, log.WHAT] == log.COPY, rows[:, log.END], rows[:, log.BEGIN]), kind="stable")
    for row in rows[order].tolist():
        if row[log.WHAT] == log.COPY:
            arrived[row[log.KEY]] = row
        elif row[log.WHAT] == log.EXPERT and row[log.KEY] in arrived:
            copy = arrived.pop(row[log.KEY])
            flow = {"name": "load", "cat": "load", "id": number, "pid": PROCESS}
            # A flow binds to the slice that holds its instant; a slice does not hold its own end.
            yield flow | {"ph": "s", "tid": _lane(copy), "ts": max(copy[log.BEGIN], copy[log.END] - 1) / 1000}
            yield flow | {"ph": "f", "bp": "e", "tid": COMPUTE, "ts": row[log.BEGIN] / 1000}
            number += 1


def _slice(lane: int, name: str, row: list[int], about: dict[str, Any]) -> dict[str, Any]:
    begin, end = row[log.BEGIN], row[log.END]
    return {
        "ph": "X",
        "name": name,
        "pid": PROCESS,
        "tid": lane,
        "ts": begin / 1000,
        "dur": (end - begin) / 1000,
        "args": about,
    }


def _metadata(what: str, lane: int, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": lane, "args": values}

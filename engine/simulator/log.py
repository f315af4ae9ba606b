"""The timeline's log: what ran where and when, one row of integers per piece of work.

A timeline writes it only for the steps it is asked to (`Timeline(..., log=range(first, last))`), i64 [rows, COLUMNS].
Rows stand in the order in which the simulator settled them, which is not the order of time across lanes.
"""

from typing import NamedTuple

import numpy as np

from engine.simulator.options import compiled

COLUMNS = 8
WHAT, BEGIN, END, VISIT, KEY, SLOT, KIND, ENGINE = range(COLUMNS)
"""Columns. BEGIN and END in nanoseconds; VISIT the running number of the visit that asked for the work (a prefetch is
often copied during a later one); KEY the expert, `layer * experts + expert`, and SLOT its slot, -1 where there is none;
KIND as below; ENGINE the number of the copy engine, 0 for everything but copies."""

# WHAT, with the lane it occupies and what KIND then says.
DENSE_PART = 0  # compute stream: attention, norms, router; at a step's first layer its fixed part too. KIND 0
OVERHEAD_PART = 1  # compute stream: the layer's overhead and the gate's readback; its END is `routed`. KIND 0
ASKING = 2  # compute stream: the host asks for the visit's copies. KIND: how many
EXPERT = 3  # compute stream: one expert, dequantisation included. KIND: the event's kind (policies.events)
WAIT = 4  # compute stream: nothing to compute. KEY: the expert that comes next, -1 for the CPU. KIND: a stall of CAUSES
CPU_EXPERT = 5  # CPU lane: one expert, activations there and back included. KIND: the event's kind
COPY = 6  # link: from the start of its setup until the wire is free again; one row per chunk. KIND: as below
DISK_READ = 7  # disk: one expert into the host cache. SLOT: where its copy will go. KIND: the event's kind

# KIND of a COPY.
COPY_DEMAND = 0  # a demand load
COPY_AHEAD = 1  # a prefetch, or a chunk of one, that began before the expert was demanded
COPY_LATE = 2  # what is left of a queued copy whose expert was demanded while it waited
COPY_ADMITTED = 3  # what the host computed, or a chunk of it, that began before the expert was demanded again


class Log(NamedTuple):
    """Rows, and how many of them are written so far."""

    rows: np.ndarray  # i64 [room, COLUMNS]
    written: np.ndarray  # i64 [1]


def make_log(room: int) -> Log:
    """A log with room for so many rows."""
    return Log(np.zeros((room, COLUMNS), np.int64), np.zeros(1, np.int64))


@compiled(inline=True)
def note(
    log: Log | None, what: int, begin: int, end: int, visit: int, key: int, slot: int, kind: int, engine: int
) -> None:
    """Write one row, if the log has room. Where there is no log (None) not even the code for it is compiled."""
    if log is None:
        return
    if log.written[0] < len(log.rows):
        row = log.rows[log.written[0]]
        row[WHAT], row[BEGIN], row[END], row[VISIT] = what, begin, end, visit
        row[KEY], row[SLOT], row[KIND], row[ENGINE] = key, slot, kind, engine
        log.written[0] += 1

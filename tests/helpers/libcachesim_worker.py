"""Runs libCacheSim on small traces: a script of its own, because its C code ends the process when it is displeased.

Reads jobs from standard input as JSON, `[{"cache", "parameters", "capacity", "ids"}, ...]`, and writes for each the
list of its hits, 0 or 1 per request. `cache` is a constructor of `libcachesim.libcachesim_python`.
"""

import json
import sys

from libcachesim import CommonCacheParams, ReqOp, Request, libcachesim_python

NEVER = 2**63 - 1


def next_accesses(ids: list[int]) -> list[int]:
    """The index of each request's next request for the same object. Without it Belady is silently something else."""
    upcoming: dict[int, int] = {}
    found = []
    for index in range(len(ids) - 1, -1, -1):
        found.append(upcoming.get(ids[index], NEVER))
        upcoming[ids[index]] = index
    return found[::-1]


def hits(cache: str, parameters: str, capacity: int, ids: list[int]) -> list[int]:
    """Whether each request hits; all objects have size 1. An integer size is a size, a float would be a ratio."""
    simulated = getattr(libcachesim_python, cache)(CommonCacheParams(int(capacity), hashpower=10), parameters)
    found = []
    for time, (key, later) in enumerate(zip(ids, next_accesses(ids), strict=True)):
        request = Request(obj_id=key, obj_size=1, clock_time=time, op=ReqOp.OP_GET, next_access_vtime=later)
        found.append(int(simulated.get(request)))
    return found


if __name__ == "__main__":
    json.dump([hits(**job) for job in json.load(sys.stdin)], sys.stdout)

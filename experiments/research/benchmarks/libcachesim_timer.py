"""Times libCacheSim's C loop: a script of its own, run in its own process (GPL, and its C code may end the process).

    python libcachesim_timer.py CACHE CAPACITY HASHPOWER TRACE...

Each TRACE is one layer's requests in the oracleGeneral format, which libCacheSim maps into memory. Prints, as JSON, the
seconds of the C loops alone and the number of hits.
"""

import json
import sys
from pathlib import Path
from time import perf_counter

from libcachesim import CommonCacheParams, TraceReader, TraceType, libcachesim_python


def main(cache: str, capacity: int, hashpower: int, traces: list[str]) -> None:
    """One pass over every layer's trace to warm up, and one that counts, each with fresh caches."""
    readers = [TraceReader(trace, TraceType.ORACLE_GENERAL_TRACE) for trace in traces]
    seconds, hits = 0.0, 0.0
    for _ in range(2):
        seconds, hits = 0.0, 0.0
        for trace, reader in zip(traces, readers, strict=True):
            requests = Path(trace).stat().st_size // 24
            fresh = getattr(libcachesim_python, cache)(CommonCacheParams(capacity, hashpower=hashpower))
            start = perf_counter()
            misses, _ = libcachesim_python.c_process_trace(fresh, reader._reader)
            seconds += perf_counter() - start
            hits += (1 - misses) * requests
    json.dump({"seconds": seconds, "hits": round(hits)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

"""Whether one machine could be held to another's times: nothing that a plan's work takes is longer on it.

Without prefetching, where every miss is copied, a better machine is never slower. Else it may be: a faster link may
begin a copy that demand then waits for, and misses are divided by what each expert takes, not by what all of them do.
(Graham 1969, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 17(2), has such cases of lists of tasks.)
But it could wait as long as the slower machine does, and then it is as fast.
"""

import numpy as np

from engine.simulator.costs import Costs

ALIKE = ("chunks", "scale", "overlapped", "cpu", "expert_bytes", "low")
"""What must be the same, or times mean other work."""
WORDS = ("notes", "paced_by")
MORE = ("copy_engines",)
DISK = ("read_ns", "lanes_ns", "slowdown_percent")


def holds(better: Costs, worse: Costs) -> bool:
    """Whether every cost of `better` is at most that of `worse`: all that a timeline knows of a machine."""
    unread = DISK if better.host_bytes < 0 else ()  # host memory holds all
    asked = (name for name in Costs._fields if name not in WORDS and name not in unread)
    return all(_no_longer(name, getattr(better, name), getattr(worse, name)) for name in asked)


def _no_longer(name: str, better: object, worse: object) -> bool:
    ours, theirs = np.asarray(better), np.asarray(worse)
    if ours.shape != theirs.shape:
        return False
    if name in ALIKE:
        return bool((ours == theirs).all())
    if name in MORE:
        return bool((ours >= theirs).all())
    if name == "host_bytes":  # -1: all of it
        return bool(ours < 0) or bool(0 <= theirs <= ours)
    if name == "call_ns" and bool((ours < 0) != (theirs < 0)):  # -1: each expert alone
        return False
    return bool((ours <= theirs).all())

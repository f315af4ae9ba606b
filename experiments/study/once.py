"""Whatever is in two traces counts once: the same trace under two names, and requests that two traces share.

A request that is counted twice makes intervals narrower than its routing warrants.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tracekit.demand import CHUNK, step_starts
from tracekit.trace import Trace

LEAST_CHOICES = 64
"""A request with fewer chosen experts than this may resemble another by chance."""


def distinct(paths: Iterable[str]) -> dict[str, str]:
    """Digests of traces by path, each trace once, in order."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(Trace.open(path).digest, path)
    return {path: digest for digest, path in first.items()}


def repeated_requests(paths: Sequence[str]) -> dict[str, list[int]]:
    """Of each trace but the first that has them, the requests that two of the traces (one of them earlier) hold.

    Two requests are one if they have the same tokens in the same order, and these chose the same experts.
    """
    seen: set[bytes] = set()
    found = {}
    for path in paths if len(paths) > 1 else ():
        own = request_digests(Trace.open(path))
        twice = [request for request, digest in own.items() if digest in seen]
        seen.update(own.values())
        if twice:
            found[path] = twice
    return found


def request_digests(trace: Trace) -> dict[int, bytes]:
    """A digest of what each request's tokens are and chose; none of requests too short to tell."""
    known: dict[int, hashlib.blake2b] = {}
    chosen: dict[int, int] = {}
    starts = step_starts(trace.step)
    rows = max(1, CHUNK // (trace.layers * trace.top_k))
    for first in range(0, int(starts[-1]), rows):
        last = min(first + rows, int(starts[-1]))
        request = trace.request[first:last]
        experts = trace.experts_of(first, last)
        order = np.argsort(request, kind="stable")
        names, begins = np.unique(request[order], return_index=True)
        for name, own in zip(names.tolist(), np.split(order, begins[1:]), strict=True):
            digest = known.setdefault(name, hashlib.blake2b(digest_size=16))
            for part in (trace.token_id[first:last][own], trace.phase[first:last][own], experts[own]):
                digest.update(np.ascontiguousarray(part).tobytes())
            chosen[name] = chosen.get(name, 0) + experts[own].size
    return {name: digest.digest() for name, digest in known.items() if chosen[name] >= LEAST_CHOICES}


def said_of_traces(paths: Sequence[str], once: Mapping[str, Sequence[int]]) -> list[str]:
    """What was counted once, in words."""
    found: list[str] = []
    first: dict[str, str] = {}
    for path in paths:
        digest = Trace.open(path).digest
        if digest in first:
            found.append(f"{path} holds the same as {first[digest]}: it counts once")
        first.setdefault(digest, path)
    for path, requests in once.items():
        several = "1 request" if len(requests) == 1 else f"{len(requests)} requests"
        found.append(f"{several} of {path} counted once in comparisons: another trace has the same")
    return found

"""Telling requests apart by what they hold: has this predictor seen this text, or this routing, before?"""

import hashlib
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

FEWEST = 8
"""Generated parts shorter than this are like others by chance."""


def told_apart(step: NDArray[Any], request: NDArray[Any], phase: NDArray[Any]) -> bool:
    """Whether requests are known: no request has two generated tokens in one forward pass; [tokens] each.

    A log of batched passes that does not say whose tokens they are becomes one request whose passes generate several
    tokens: no statistic that follows a request from token to token means anything then.
    """
    rows = np.flatnonzero(phase == DECODE)
    shared = rows[np.flatnonzero(np.diff(step[rows], append=-1) == 0)]  # generated tokens with another in their step
    if not len(shared):
        return True
    among = np.isin(step[rows], step[shared])
    pairs = np.stack([step[rows][among], request[rows][among]]).astype(np.int64)
    return len(np.unique(pairs[0] << 32 | pairs[1])) == int(among.sum())


def request_digests(trace: Trace) -> dict[int, list[str]]:
    """For each request's number, ascending, the digests that it is known by: of its prompt, and of what was generated.

    Token ids make a digest where all are known; else the experts do. A sliced, merged or batched trace holds the same
    requests under the same digests, as long as a phase of them is whole.
    """
    order = np.lexsort((trace.position, trace.request))
    request, phase = trace.request[order], trace.phase[order]
    edges = np.flatnonzero(np.diff(request, prepend=-1))
    found: dict[int, list[str]] = {}
    for first, last in pairwise([*edges.tolist(), len(request)]):
        rows = order[first:last]
        prompt = phase[first:last] == PREFILL
        parts = [rows[prompt], rows[~prompt]]
        digests = [_digest(trace, parts[0])] if len(parts[0]) else []
        if len(parts[1]) >= FEWEST or not digests:
            digests.append(_digest(trace, parts[1]))
        found[int(request[first])] = digests
    return found


def known_requests(trace: Trace, digests: Collection[str]) -> list[int]:
    """The numbers of the requests of which any digest is among `digests`, ascending."""
    known = set(digests)
    return [number for number, own in request_digests(trace).items() if known.intersection(own)]


def text_digests(ids: NDArray[np.int64]) -> list[str]:
    """The digests that a request is known by whose prompt is these token ids, or these without the first, which begins
    a text."""
    return [_of_tokens(ids), _of_tokens(ids[1:])]


def _digest(trace: Trace, rows: NDArray[np.intp]) -> str:
    tokens = trace.token_id[rows]
    if (tokens >= 0).all():
        return _of_tokens(tokens)
    return hashlib.sha256(b"experts" + trace.experts[rows].astype("<u2").tobytes()).hexdigest()


def _of_tokens(ids: NDArray[Any]) -> str:
    return hashlib.sha256(b"tokens" + ids.astype("<i4").tobytes()).hexdigest()

"""Facts about rows that need no experts: whose token it is, in which kind of step, and where its request's state is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tracekit.demand import step_starts
from tracekit.rows import DECODE
from tracekit.trace import Trace


@dataclass(frozen=True, slots=True)
class Order:
    """One value per row, [tokens].

    decode: the token is a generated one. step: number of its forward pass, from 0. whole: all tokens of that pass are
    generated ones. request: its request, numbered in order of appearance. slot: of a small table, held by a request
    from its first decode token to its last, so that the table is as large as most requests in flight, however many
    there are; -1 for prefill.
    """

    decode: NDArray[np.bool_]
    step: NDArray[np.int32]
    whole: NDArray[np.bool_]
    request: NDArray[np.int32]
    slot: NDArray[np.int32]
    requests: int
    slots: int
    decode_steps: int
    prefill_steps: int


def order_of(trace: Trace) -> Order:
    """The facts of every row of a trace; memory of a few bytes per row."""
    decode = trace.phase == DECODE
    starts = step_starts(trace.step)
    sizes = np.diff(starts)
    whole = np.logical_and.reduceat(decode, starts[:-1]) if trace.tokens else np.zeros(0, np.bool_)
    request, requests = dense(trace.request)
    slot, slots = _slots(request, decode, requests)
    return Order(
        decode=decode,
        step=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        whole=np.repeat(whole, sizes),
        request=request,
        slot=slot,
        requests=requests,
        slots=slots,
        decode_steps=int(whole.sum()),
        prefill_steps=int(len(whole) - whole.sum()),
    )


def dense(request: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Requests numbered from 0 in order of appearance, and how many there are."""
    if not len(request):
        return np.zeros(0, np.int32), 0
    # Rows of a request mostly follow each other: only runs are sorted.
    starts = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
    values, first, inverse = np.unique(request[starts], return_index=True, return_inverse=True)
    rank = np.empty(len(values), np.int32)
    rank[np.argsort(first)] = np.arange(len(values), dtype=np.int32)
    return np.repeat(rank[inverse.reshape(-1)], np.diff(np.append(starts, len(request)))), len(values)


@njit(cache=True)
def _slots(request: Any, decode: Any, requests: int) -> Any:
    last = np.full(requests, -1, np.int64)
    for row in range(len(request)):
        if decode[row]:
            last[request[row]] = row
    held = np.full(requests, -1, np.int32)
    free = np.empty(requests, np.int32)
    slot = np.full(len(request), -1, np.int32)
    available, used = 0, 0
    for row in range(len(request)):
        if not decode[row]:
            continue
        owner = request[row]
        if held[owner] < 0:
            if available:
                available -= 1
                held[owner] = free[available]
            else:
                held[owner] = used
                used += 1
        slot[row] = held[owner]
        if last[owner] == row:
            free[available] = held[owner]
            available += 1
    return slot, used

"""Facts about rows that need no experts: whose token it is, in which kind of step, and where its request's state is."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from tracekit.arrays import I32, Bools
from tracekit.demand import step_starts
from tracekit.rows import DECODE, first_appearances
from tracekit.trace import Trace


@dataclass(frozen=True, slots=True)
class Order:
    """One value per row, [tokens].

    decode: the token is a generated one. step: number of its forward pass, from 0. whole: all tokens of that pass are
    generated ones. request: its request, numbered in order of appearance. slot: of a small table, held by a request
    from its first decode token to its last, so that the table is as large as most requests in flight, however many
    there are; -1 for prefill.
    """

    decode: Bools
    step: I32
    whole: Bools
    request: I32
    slot: I32
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
    request, requests = first_appearances(trace.request)
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


@njit(cache=True)
def _slots(request: I32, decode: Bools, requests: int) -> tuple[I32, int]:
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

"""What-if batching: the order in which a server with continuous batching would have run a trace's requests."""

from typing import NamedTuple

import msgspec
import numpy as np
from numba import njit

from tracekit.arrays import F64, I32, I64, U8, Bools
from tracekit.errors import PlanError
from tracekit.rows import PREFILL, first_appearances


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace's requests were batched, and what came of it."""

    batch: int
    arrival_rate: float | None
    """Requests per decode step on average; None: all there from the start."""
    seed: int | None
    requests: int
    decode_steps: int
    requests_per_decode_step: float | None

    @property
    def warnings(self) -> list[str]:
        """What every result on such a trace must say."""
        told = [
            f"batched {self.batch}: an approximation: requests' routing is taken as independent of their batch",
        ]
        if self.requests < 2:
            told.append(f"the trace holds {self.requests} request: there is nothing to batch")
        return told


def schedule(
    step: I32,
    request: I32,
    phase: U8,
    batch: int,
    arrivals: F64 | None = None,
) -> tuple[I64, I32]:
    """The rows of a trace in batched order, and the step that each belongs to then.

    Requests are served first come, first served, at most `batch` at a time; one that ends makes room for the next. In
    a decode step every request in flight takes the next of its own decode steps. A prefill step runs as a step of its
    own, before any further decode step, as in servers that put prompts first: only so does its phase, and so its time
    and its loads, remain apart. A request's own steps keep their order; one counts as prefill by its first row.

    The clock counts decode steps: there are no seconds where only routing is known. Prefill takes no time on it, and
    where nobody is in flight it jumps to the next arrival.

    Args:
        step, request, phase: [tokens] each, as in a trace; `step` never decreases.
        batch: most requests in flight.
        arrivals: [requests], in order of first appearance, the clock's reading at which each request is there; None
            has all there from the start. Ties are served in order of first appearance.

    Returns:
        order: [tokens] i64, the row that stands at each place; step: [tokens] i32, from 0, never decreasing.

    One stable sort by request, then O(tokens). Raises PlanError for an impossible batch or arrivals.
    """
    if batch < 1:
        raise PlanError(f"a batch of {batch} requests runs nothing: give 1 or more")
    appearance, requests = first_appearances(request)
    came = np.zeros(requests) if arrivals is None else np.asarray(arrivals, np.float64)
    if came.shape != (requests,) or not np.isfinite(came).all() or (came < 0).any():
        raise PlanError(f"arrivals must be {requests} finite numbers of steps from 0, one for each request")
    served = np.argsort(came, kind="stable")
    place = np.empty(requests, np.int64)
    place[served] = np.arange(requests)
    turn = place[appearance]  # [tokens]: which request a row is of, counted in order of service
    rows = np.argsort(turn, kind="stable")
    # A segment is one request's part of one recorded step.
    begins = np.ones(len(rows), bool)
    begins[1:] = (np.diff(turn[rows]) != 0) | (np.diff(step[rows]) != 0)
    segment = np.append(np.flatnonzero(begins), len(rows))
    first_of = np.searchsorted(turn[rows][segment[:-1]], np.arange(requests + 1))
    prefill = phase[rows[segment[:-1]]] == PREFILL
    parts = _Parts(rows, segment, first_of, prefill, first_of[:-1].copy())
    order, batched = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
    # In compiled code `batch` is the length of an array: no longer than can ever be used.
    _run(parts, came[served], min(batch, max(requests, 1)), order, batched)
    return order, batched


def poisson_arrivals(requests: int, rate: float, seed: int) -> F64:
    """[requests] arrivals at `rate` per decode step on average, the gaps drawn from an exponential distribution."""
    if not 0 < rate < np.inf:
        raise PlanError(f"an arrival rate of {rate:g} requests per decode step is not a number above 0")
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))


class _Parts(NamedTuple):
    """The segments of all requests, in order of service, and how far they have run."""

    rows: I64  # [tokens], segment after segment
    starts: I64  # [segments + 1] of each segment's rows
    first_of: I64  # [requests + 1] each request's first segment
    prefill: Bools  # [segments]
    next_of: I64  # [requests] each request's next segment


@njit(cache=True)
def _run(parts: _Parts, arrival: F64, batch: int, order: I64, step: I32) -> None:
    requests = len(arrival)
    flying = np.empty(batch, np.int64)
    count = waiting = place = now = 0
    clock = 0.0
    while count > 0 or waiting < requests:
        if count == 0:
            clock = max(clock, arrival[waiting])
        while count < batch and waiting < requests and arrival[waiting] <= clock:
            place, now = _prefill(parts, waiting, order, step, place, now)
            if parts.next_of[waiting] < parts.first_of[waiting + 1]:
                flying[count] = waiting
                count += 1
            waiting += 1
        for i in range(count):
            place = _copy(parts, flying[i], order, step, place, now)
        if count > 0:
            now += 1
            clock += 1
        left = 0
        for i in range(count):
            request = flying[i]
            place, now = _prefill(parts, request, order, step, place, now)
            if parts.next_of[request] < parts.first_of[request + 1]:
                flying[left] = request
                left += 1
        count = left


@njit(cache=True)
def _prefill(parts: _Parts, request: int, order: I64, step: I32, place: int, now: int) -> tuple[int, int]:
    """Run what the request has to prefill before its next decode step, each step alone."""
    while parts.next_of[request] < parts.first_of[request + 1] and parts.prefill[parts.next_of[request]]:
        place = _copy(parts, request, order, step, place, now)
        now += 1
    return place, now


@njit(cache=True)
def _copy(parts: _Parts, request: int, order: I64, step: I32, place: int, now: int) -> int:
    """Put the request's next segment into the step `now`."""
    number = parts.next_of[request]
    for row in range(parts.starts[number], parts.starts[number + 1]):
        order[place] = parts.rows[row]
        step[place] = now
        place += 1
    parts.next_of[request] += 1
    return place

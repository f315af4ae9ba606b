"""Continuous batching of recorded requests, against a simulation that is slow and obvious."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.batching import poisson_arrivals, schedule
from tracekit.errors import PlanError
from tracekit.rows import DECODE, PREFILL, first_appearances

SEEDS = st.integers(0, 2**32 - 1)


def simulated(
    step: list[int], request: list[int], phase: list[int], batch: int, arrivals: list[float]
) -> list[list[int]]:
    """The rows of every step, in order, by lists alone."""
    names = list(dict.fromkeys(request))
    parts: dict[int, list[list[int]]] = {}  # request -> the rows of each of its steps
    for name in names:
        mine = [row for row, other in enumerate(request) if other == name]
        parts[name] = [[row for row in mine if step[row] == one] for one in sorted({step[row] for row in mine})]
    waiting = sorted(names, key=lambda name: (arrivals[names.index(name)], names.index(name)))
    flying: list[int] = []
    clock, steps = 0.0, []
    while flying or waiting:
        if not flying:
            clock = max(clock, arrivals[names.index(waiting[0])])
        while waiting and len(flying) < batch and arrivals[names.index(waiting[0])] <= clock:
            flying.append(waiting.pop(0))
        prompts = [name for name in flying if phase[parts[name][0][0]] == PREFILL]
        if prompts:
            steps.append(parts[prompts[0]].pop(0))
        else:
            steps.append([row for name in flying for row in parts[name].pop(0)])
            clock += 1
        flying = [name for name in flying if parts[name]]
    return steps


def random_rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that may hold several requests, several tokens of each, prefill anywhere, and requests of any name."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(0, 40))
    step = np.cumsum(rng.random(tokens) < rng.choice([0.3, 0.7, 1.0])).astype(np.int32)
    request = rng.choice([7, 3, 2**31 - 1, 0, 4, 11], tokens).astype(np.int32)
    if rng.random() < 0.5:
        request = np.sort(request)
    phase = (rng.random(tokens) < rng.choice([0.2, 0.8, 1.0])).astype(np.uint8)
    return step, request, phase


def steps_of(order: np.ndarray, step: np.ndarray) -> list[list[int]]:
    return [order[step == one].tolist() for one in range(int(step[-1]) + 1 if len(step) else 0)]


@settings(max_examples=400, deadline=None)
@given(seed=SEEDS, batch=st.integers(1, 7), rate=st.sampled_from([None, 0.05, 0.5, 3.0]))
def test_as_simulated(seed: int, batch: int, rate: float | None) -> None:
    step, request, phase = random_rows(seed)
    requests = len(set(request.tolist()))
    arrivals = None if rate is None else poisson_arrivals(requests, rate, seed)
    order, new = schedule(step, request, phase, batch, arrivals)
    came = [0.0] * requests if arrivals is None else arrivals.tolist()
    assert steps_of(order, new) == simulated(step.tolist(), request.tolist(), phase.tolist(), batch, came)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, batch=st.integers(1, 7))
def test_what_every_schedule_keeps(seed: int, batch: int) -> None:
    """Each row once, a request's steps in order and apart, no more requests in flight than allowed, prefill alone."""
    step, request, phase = random_rows(seed)
    rng = np.random.default_rng(seed)
    arrivals = rng.integers(0, 6, len(set(request.tolist()))).astype(float)
    order, new = schedule(step, request, phase, batch, arrivals)
    assert sorted(order.tolist()) == list(range(len(step)))
    assert (np.diff(new) >= 0).all() and (np.diff(new) <= 1).all()
    spans = {}
    for name in set(request.tolist()):
        mine = request[order] == name
        assert (np.diff(order[mine]) > 0).all()
        assert ((np.diff(new[mine]) > 0) == (np.diff(step[order][mine]) > 0)).all()
        spans[name] = (new[mine].min(), new[mine].max())
    for rows in steps_of(order, new):
        now = new[order.tolist().index(rows[0])]
        assert sum(first <= now <= last for first, last in spans.values()) <= batch
        if phase[rows[0]] == PREFILL:
            assert len(set(request[rows].tolist())) == 1
    # First come, first served; who begins with a prompt may overtake who does not.
    numbers, requests = first_appearances(request)
    place = {int(number): at for at, number in reversed(list(enumerate(numbers[order].tolist())))}
    for kind in (PREFILL, DECODE):
        begun = [n for n in range(requests) if phase[order[place[n]]] == kind]
        assert sorted(begun, key=lambda n: place[n]) == sorted(begun, key=lambda n: (arrivals[n], n))


def test_by_hand() -> None:
    """Requests 5, 6, 9 of two, one and three decode steps, each behind a prompt of two tokens; two at a time."""
    request = np.array([5, 5, 5, 5, 6, 6, 6, 9, 9, 9, 9, 9], np.int32)
    step = np.array([0, 0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8], np.int32)
    phase = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1], np.uint8)
    order, new = schedule(step, request, phase, 2)
    # Prompt of 5; prompt of 6; both decode and 6 ends; prompt of 9; both decode and 5 ends; 9 decodes alone, twice.
    assert steps_of(order, new) == [[0, 1], [4, 5], [2, 6], [7, 8], [3, 9], [10], [11]]


def test_one_at_a_time_is_the_trace_itself() -> None:
    step, request, phase = np.arange(6), np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 1, 0])
    order, new = schedule(step.astype(np.int32), request.astype(np.int32), phase.astype(np.uint8), 1)
    assert order.tolist() == new.tolist() == list(range(6))


def test_arrivals_decide_who_shares_a_step() -> None:
    """Two requests of three decode steps: the second comes during the first's second step, or when it is long over."""
    step, request = np.arange(6, dtype=np.int32), np.repeat(np.array([0, 1], np.int32), 3)
    phase = np.full(6, DECODE, np.uint8)
    together = schedule(step, request, phase, 4, np.array([0.0, 1.5]))
    assert steps_of(*together) == [[0], [1], [2, 3], [4], [5]]
    apart = schedule(step, request, phase, 4, np.array([0.0, 100.0]))
    assert steps_of(*apart) == [[0], [1], [2], [3], [4], [5]]
    swapped = schedule(step, request, phase, 1, np.array([2.0, 0.0]))
    assert steps_of(*swapped) == [[3], [4], [5], [0], [1], [2]]


def test_poisson_arrivals_have_their_rate_and_their_seed() -> None:
    arrivals = poisson_arrivals(4000, 0.25, 3)
    gaps = np.diff(arrivals)
    assert abs(gaps.mean() - 4) < 0.3 and abs(gaps.std() - 4) < 0.4 and (gaps >= 0).all()
    assert (arrivals == poisson_arrivals(4000, 0.25, 3)).all()
    assert (arrivals != poisson_arrivals(4000, 0.25, 4)).any()


@pytest.mark.parametrize("batch", [0, -1])
def test_impossible_batches(batch: int) -> None:
    with pytest.raises(PlanError, match=f"batch of {batch}"):
        schedule(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8), batch)


@pytest.mark.parametrize("arrivals", [[], [1.0, 2.0], [-1.0], [np.nan], [np.inf]], ids=str)
def test_impossible_arrivals(arrivals: list[float]) -> None:
    with pytest.raises(PlanError, match="1 finite"):
        schedule(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8), 2, np.array(arrivals))


@pytest.mark.parametrize("rate", [0, -1, np.nan, np.inf])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(PlanError, match="arrival rate"):
        poisson_arrivals(3, rate, 0)


def test_as_many_requests_as_tokens_are_no_trouble() -> None:
    """Time grows with tokens, not with requests times batch."""
    tokens = 300_000
    request, step = np.arange(tokens, dtype=np.int32), np.arange(tokens, dtype=np.int32)
    phase = np.zeros(tokens, np.uint8)
    schedule(step[:9], request[:9], phase[:9], 4)  # compile
    start = time.perf_counter()
    order, _ = schedule(step, request, phase, tokens)
    assert time.perf_counter() - start < 2
    assert (order == np.arange(tokens)).all()

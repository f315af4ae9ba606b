"""Demand against its definition, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.scenarios import memory_trace
from tracekit.demand import Demand, demand_of, iter_demand, step_starts
from tracekit.rows import UNUSED

Visits = list[tuple[int, list[int], list[int], list[int]]]  # layer, keys, recency, tokens


def by_definition(experts: np.ndarray, num_experts: int, step: np.ndarray) -> Visits:
    visits = []
    for number in dict.fromkeys(step.tolist()):
        rows = experts[step == number]
        for layer in range(experts.shape[1]):
            chosen = [layer * num_experts + int(e) for e in rows[:, layer].ravel() if e != UNUSED]
            keys = list(dict.fromkeys(chosen))
            recency = sorted(keys, key=lambda key: max(i for i, other in enumerate(chosen) if other == key))
            visits.append((layer, keys, recency, [chosen.count(key) for key in keys]))
    return visits


def visits_of(demand: Demand) -> Visits:
    return [
        (
            int(demand.layer[visit]),
            *(column[start:stop].tolist() for column in (demand.keys, demand.recency, demand.tokens)),
        )
        for visit, (start, stop) in enumerate(zip(demand.start[:-1].tolist(), demand.start[1:].tolist(), strict=True))
    ]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), chunk=st.integers(1, 100))
def test_demand_is_as_defined_in_pieces_of_any_size(seed: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    layers, num_experts = int(rng.integers(1, 5)), int(rng.integers(1, 10))
    top_k, tokens = int(rng.integers(1, num_experts + 1)), int(rng.integers(1, 30))
    experts = rng.random((tokens, layers, num_experts)).argsort(axis=2)[:, :, :top_k].astype(np.uint16)
    experts[rng.random(experts.shape) < rng.choice([0, 0.3, 1])] = UNUSED
    # Step numbers may leave gaps.
    step = np.cumsum(rng.choice(([0, 1, 3], [1, 2])[int(rng.integers(2))], tokens)).astype(np.int32)
    if rng.random() < 0.2:
        experts[:, :, -1] = experts[:, :, 0]  # a row may repeat an expert
    phase = rng.integers(0, 2, tokens).astype(np.uint8)
    pieces = list(iter_demand(memory_trace(experts, [num_experts] * layers, step, phase=phase), chunk))
    assert [visit for piece in pieces for visit in visits_of(piece)] == by_definition(experts, num_experts, step)
    first_rows = [int(np.flatnonzero(step == number)[0]) for number in dict.fromkeys(step.tolist())]
    assert np.concatenate([piece.phase for piece in pieces]).tolist() == phase[first_rows].tolist()
    assert (
        np.concatenate([piece.step_tokens for piece in pieces]).tolist()
        == np.unique(step, return_counts=True)[1].tolist()
    )
    assert [piece.first_step for piece in pieces] == np.cumsum([0, *(piece.steps for piece in pieces)])[:-1].tolist()
    assert all(piece.visits == piece.steps * layers for piece in pieces)


def test_a_repeated_expert_keeps_its_first_place_and_takes_its_last() -> None:
    """Tokens choose (2, 0), (1, 2), (0, 3): first references 2 0 1 3, last references 1 2 0 3."""
    experts = np.array([[[2, 0]], [[1, 2]], [[0, 3]]], np.uint16)
    demand = demand_of(experts, 4, np.array([0, 3]), np.zeros(3, np.uint8))
    assert demand.keys.tolist() == [2, 0, 1, 3]
    assert demand.recency.tolist() == [1, 2, 0, 3]
    assert demand.tokens.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("step", "starts"), [([], [0]), ([5], [0, 1]), ([0, 0, 1, 4, 4, 4], [0, 2, 3, 6])], ids=["none", "one", "several"]
)
def test_step_starts(step: list[int], starts: list[int]) -> None:
    assert step_starts(np.array(step, np.int32)).tolist() == starts


def test_no_tokens_no_demand() -> None:
    nothing = memory_trace(np.empty((0, 2, 2), np.uint16), [4, 4])
    assert list(iter_demand(nothing)) == []


def test_a_step_larger_than_a_piece_stays_whole() -> None:
    experts = np.zeros((50, 1, 1), np.uint16)
    pieces = list(iter_demand(memory_trace(experts, [1], np.zeros(50, np.int32)), chunk=1))
    assert [piece.tokens.tolist() for piece in pieces] == [[50]]

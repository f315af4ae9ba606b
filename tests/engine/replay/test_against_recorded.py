"""A replay held against what the traced engine's cache held: a real engine's log, and logs made to agree or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.replay.against_recorded import AgainstRecorded, Agreement
from engine.replay.replay import replay
from tests.helpers.traces import make_trace, random_experts
from tracekit.batched import batched
from tracekit.errors import TraceError
from tracekit.importers import import_trace
from tracekit.prefix import first_steps
from tracekit.rows import UNUSED
from tracekit.trace import Trace

EXPERTS = random_experts(np.random.default_rng(2), 60, 2, 8, 2)


def compared(trace: Trace, capacity: str, policy: str = "lru") -> Agreement:
    against = AgainstRecorded(trace)
    plan: dict[str, Any] = {"cache": {"capacity": capacity}, "eviction": {"policy": policy}}
    replay(trace, plan, bounds=False, on_events=against.compare)
    return against.agreement


def test_every_lookup_of_a_real_engine(shared_data: Path, tmp_path: Path) -> None:
    """The engine kept 4000 MiB under LRU; under any other policy or budget the log does not agree."""
    source = shared_data / "qwen3-30b-a3b-phone" / "route.csv"
    phone = import_trace("bigmoe-csv", source, tmp_path / "phone.trace")
    found = compared(phone, "4000MiB")
    assert found.lookups == found.agree == 39_526 and found.first_disagreement is None
    assert 0 < found.recorded_hits == found.replayed_hits < found.lookups
    other = compared(phone, "4000MiB", "lfu")
    assert other.lookups == 39_526 > other.agree and other.first_disagreement is not None


def lru_residency(experts: np.ndarray, slots: int) -> np.ndarray:
    """What an LRU cache of each layer's own would have held, one token a step, in plain Python."""
    held = np.zeros(experts.shape, np.uint8)
    for layer in range(experts.shape[1]):
        cache: list[int] = []
        for token, chosen in enumerate(experts[:, layer].tolist()):
            held[token, layer] = [expert in cache for expert in chosen]
            cache = [*(expert for expert in cache if expert not in chosen), *chosen][-slots:]
    return held


def test_the_first_disagreement_is_named(tmp_path: Path) -> None:
    held = lru_residency(EXPERTS, 4)
    whole = make_trace(tmp_path / "a.trace", EXPERTS, num_experts=8, residency=held)
    assert compared(whole, "4/layer").agree == compared(whole, "4/layer").lookups == 240
    held[30, 1, 0] = not held[30, 1, 0]
    held[40, 0, 1] = not held[40, 0, 1]
    wrong = make_trace(tmp_path / "b.trace", EXPERTS, num_experts=8, residency=held, step=np.arange(60) * 2)
    found = compared(wrong, "4/layer")
    assert found.lookups - found.agree == 2 and found.first_disagreement is not None
    first = found.first_disagreement
    assert (first.step, first.layer, first.expert) == (60, 1, EXPERTS[30, 1, 0])
    assert first.recorded != first.replayed and first.recorded == bool(held[30, 1, 0])
    early = compared(first_steps(wrong, 20), "4/layer")
    assert early.agree == early.lookups == 80


def test_a_visit_of_several_tokens_is_said_by_its_first_rows(tmp_path: Path) -> None:
    """Of tokens that share an expert in a step the first one looks it up; unused slots look nothing up."""
    experts = np.array([[[0, 1]], [[1, UNUSED]], [[1, 2]], [[2, 0]]])
    held = np.array([[[0, 0]], [[1, 1]], [[1, 0]], [[1, 1]]])
    trace = make_trace(tmp_path / "a.trace", experts, num_experts=4, step=[0, 0, 1, 1], residency=held)
    found = compared(trace, "3/layer")
    assert (found.lookups, found.agree, found.recorded_hits) == (5, 5, 2)


def test_a_trace_that_does_not_say(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", EXPERTS, request=np.repeat([0, 1], 30))
    with pytest.raises(TraceError, match="does not say what its engine's cache held"):
        AgainstRecorded(trace)
    held = make_trace(tmp_path / "b.trace", EXPERTS, request=np.repeat([0, 1], 30), residency=np.zeros_like(EXPERTS))
    with pytest.raises(TraceError, match="batching changes it"):
        AgainstRecorded(batched(held, 2))

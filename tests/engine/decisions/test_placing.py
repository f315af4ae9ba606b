"""Placements made from traces, what plans make of them, and whose requests they may be judged on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.evidence import check_evidence
from engine.decisions.placing import place
from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.placement import save_placement
from engine.plan.plan import Plan
from engine.replay.replay import replay
from policies.events import HIT_PINNED, HIT_PREFETCHED
from tests.helpers.traces import skewed_trace
from tracekit.edit.slice import Selection, slice_trace
from tracekit.errors import CapacityError, PlanError
from tracekit.trace import Trace

LAYERS, EXPERTS = 3, 8


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace]:
    folder = tmp_path_factory.mktemp("traces")
    return skewed_trace(folder / "profile.trace", 1), skewed_trace(folder / "test.trace", 2)


def hits(trace: Trace, plan: Plan) -> int:
    spec = cache_spec([EXPERTS] * LAYERS, [], plan)
    return sum(int((events.kind <= HIT_PREFETCHED).sum()) for _, events in iter_decisions(trace, spec))


def counted(trace: Trace) -> np.ndarray:
    found = np.zeros((LAYERS, EXPERTS), np.int64)
    for token in trace.experts:
        for layer in range(LAYERS):
            found[layer, token[layer]] += 1
    return found


def test_by_popularity(traces: tuple[Trace, Trace]) -> None:
    found = place(traces[0], "3/layer")
    for layer, counts in enumerate(counted(traces[0])):
        expected = sorted(range(EXPERTS), key=lambda expert: (-counts[expert], expert))[:3]
        assert found.pinned[str(layer)] == sorted(expected)
    assert sum(map(len, place(traces[0], "5").pinned.values())) == 5


def test_evenly(traces: tuple[Trace, Trace]) -> None:
    assert place(traces[0], "4/layer; layers 1: 3", by="even").pinned == {
        "0": [0, 2, 4, 6],
        "1": [0, 2, 5],
        "2": [0, 2, 4, 6],
    }


def test_by_marginal_hits_no_other_first_choice_misses_more(traces: tuple[Trace, Trace]) -> None:
    """The first expert of a layer is the one that an LRU cache of the moving slots misses most, counted by hand."""
    trace = traces[0]
    found = place(trace, "1/layer", by="marginal", beside="3/layer")
    for layer in range(LAYERS):
        kept: list[int] = []
        missed = np.zeros(EXPERTS, np.int64)
        for token in trace.experts[:, layer].tolist():
            present = list(kept)
            for expert in token:
                missed[expert] += expert not in present
            kept = [expert for expert in kept if expert not in token] + token
            kept = kept[-3:]
        assert found.pinned[str(layer)] == [int(np.argmax(missed))]


def test_marginal_beside_a_cache_hits_more_than_popularity(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    """On the trace that both are made from; whether on others is for an experiment to say."""
    trace = traces[0]
    found = {}
    for by, beside in (("popularity", None), ("marginal", "3/layer"), ("even", None)):
        path = tmp_path / f"{by}.placement.toml"
        save_placement(place(trace, "2/layer", by=by, beside=beside), path)  # type: ignore[arg-type]
        found[by] = hits(trace, Plan("5/layer", placement=str(path)))
    assert found["marginal"] >= found["popularity"] > found["even"]


def test_static_is_everything_pinned_by_popularity(traces: tuple[Trace, Trace]) -> None:
    profile = str(traces[0].path)
    static = cache_spec([EXPERTS] * LAYERS, [], Plan("3/layer", eviction={"policy": "static", "profile": profile}))
    popular = Plan("3/layer", placement={"pinned": "popular:3/layer", "profile": profile})
    spec = cache_spec([EXPERTS] * LAYERS, [], popular)
    assert set(static.pinned) == set(spec.pinned)
    logs = [[e for _, events in iter_decisions(traces[1], s) for e in events.rows()] for s in (static, spec)]
    assert [row[:3] for row in logs[0]] == [row[:3] for row in logs[1]]


def test_hits_of_pinned_experts_are_told_apart(traces: tuple[Trace, Trace]) -> None:
    plan = Plan("4/layer", placement={"pinned": "popular:2/layer", "profile": str(traces[0].path)})
    result = replay(traces[1], plan, bounds=False)
    spec = cache_spec([EXPERTS] * LAYERS, [], plan)
    pinned = np.zeros((LAYERS, EXPERTS), np.bool_)
    pinned.flat[list(spec.pinned)] = True
    assert result.hits_by.pinned == int(counted(traces[1])[pinned].sum()) > 0
    assert result.hits == sum((result.hits_by.cache, result.hits_by.pinned, result.hits_by.prefetch))
    assert result.hits + result.misses == result.lookups
    assert int(sum((e.kind == HIT_PINNED).sum() for _, e in iter_decisions(traces[1], spec))) == result.hits_by.pinned


def test_whole_layers_need_room_for_all_their_experts(traces: tuple[Trace, Trace]) -> None:
    plan = Plan("4/layer; layers 0: 8", placement="layers 0")
    assert cache_spec([EXPERTS] * LAYERS, [], plan).pinned == tuple(range(8))
    assert replay(traces[1], plan, bounds=False).hits_by.pinned == 480
    with pytest.raises(CapacityError, match="expert 4 of MoE layer 0"):
        replay(traces[1], Plan("4/layer", placement="layers 0"), bounds=False)
    with pytest.raises(PlanError, match="names MoE layer 3, but the model has 3"):
        replay(traces[1], Plan("4/layer", placement="layers 3"), bounds=False)


def test_static_pins_all_by_itself(traces: tuple[Trace, Trace]) -> None:
    plan = Plan("4/layer", eviction={"policy": "static", "profile": str(traces[0].path)}, placement="layers 0")
    with pytest.raises(PlanError, match="leave out placement"):
        cache_spec([EXPERTS] * LAYERS, [], plan)


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(0, 24), layers=st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_an_even_split(slots: int, layers: list[int]) -> None:
    slots = min(slots, sum(layers))
    capacity = cache_spec(layers, [], Plan(str(slots), split="even")).capacity
    assert sum(capacity) == slots
    assert all(got <= most for got, most in zip(capacity, layers, strict=True))
    # Nobody has two more than another who could have had one of them.
    assert all(a <= b + 1 for a in capacity for b, most in zip(capacity, layers, strict=True) if b < most)


def test_an_even_split_of_slots_per_layer_is_those(traces: tuple[Trace, Trace]) -> None:
    per_layer = [EXPERTS] * LAYERS
    assert cache_spec(per_layer, [], Plan("3/layer", split="even")).capacity == (3, 3, 3)
    assert cache_spec(per_layer, [], Plan("3/layer; layers 0-2: 3")).capacity == (3, 3, 3)
    rows = [
        [row for _, events in iter_decisions(traces[1], cache_spec(per_layer, [], plan)) for row in events.rows()]
        for plan in (Plan("3/layer"), Plan("3/layer; layers 0-2: 3"), Plan("9", split="even"))
    ]
    assert rows[0] == rows[1] == rows[2]


def test_a_split_by_curve_has_the_same_slots_and_no_fewer_hits_there(traces: tuple[Trace, Trace]) -> None:
    """On the trace of the curves, whose hulls are near enough: no even split hits more."""
    curve = Plan("9", split="curve", split_from=str(traces[0].path))
    spec = cache_spec([EXPERTS] * LAYERS, [], curve)
    assert sum(spec.capacity) == 9 and len(spec.capacity) == LAYERS
    assert hits(traces[0], curve) >= hits(traces[0], Plan("9", split="even"))


def test_a_split_by_curve_leaves_room_for_what_is_pinned(traces: tuple[Trace, Trace]) -> None:
    plan = Plan("14", split="curve", split_from=str(traces[0].path), placement="layers 1")
    spec = cache_spec([EXPERTS] * LAYERS, [], plan)
    assert spec.capacity[1] == EXPERTS and sum(spec.capacity) == 14
    with pytest.raises(CapacityError, match="8 experts are pinned, but capacity '7' is 7 slots"):
        small = Plan("7", split="curve", split_from=str(traces[0].path), placement="layers 1")
        cache_spec([EXPERTS] * LAYERS, [], small)


def plans_of(trace: Trace, folder: Path) -> dict[str, Plan]:
    """Every way in which a plan knows from a trace where experts should lie."""
    path = folder / "p.placement.toml"
    save_placement(place(trace, "2/layer"), path)
    return {
        "made from": Plan("4/layer", placement=str(path)),
        "the profile of placement": Plan(
            "4/layer", placement={"pinned": "popular:1/layer", "profile": str(trace.path)}
        ),
        "cache.split_from": Plan("12", split="curve", split_from=str(trace.path)),
    }


def test_no_request_is_evidence_for_what_was_made_from_it(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    own = slice_trace(traces[0], Selection("0:2", None, None), tmp_path / "part.trace")
    for words, plan in plans_of(traces[0], tmp_path).items():
        assert check_evidence(traces[1], plan) == []
        with pytest.raises(PlanError, match=rf"{words}.*2 of the 2 requests .* no evidence.*--allow-fitted"):
            replay(own, plan, bounds=False)
        (marked,) = check_evidence(own, plan, allow_fitted=True)
        assert marked.startswith("NOT EVIDENCE: ") and words in marked
        assert marked in replay(own, plan, allow_fitted=True, bounds=False).warnings


def test_the_profile_of_static_in_hindsight_is_said(traces: tuple[Trace, Trace]) -> None:
    def warnings(trace: Trace) -> list[str]:
        plan = Plan("3/layer", eviction={"policy": "static", "profile": str(traces[0].path)})
        return [text for text in replay(trace, plan, bounds=False).warnings if "NOT EVIDENCE" in text]

    assert warnings(traces[1]) == []
    assert len(warnings(traces[0])) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"slots": "2/layer", "by": "marginal"}, "belong together"),
        ({"slots": "2/layer", "beside": "2/layer"}, "belong together"),
        ({"slots": "2MiB"}, "--slots '2MiB': give slots of each layer"),
        ({"slots": "9", "by": "even"}, "--slots '9': give slots of each layer"),
        ({"slots": "2/layer", "by": "marginal", "beside": "6"}, "--beside '6': give slots of each layer"),
    ],
)
def test_what_cannot_be_placed(traces: tuple[Trace, Trace], arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        place(traces[0], **arguments)

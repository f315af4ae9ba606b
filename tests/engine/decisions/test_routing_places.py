"""A profile of a routing policy: who weighed most, to first order what is made of it, and whose requests it holds."""

from pathlib import Path

import numpy as np
import pytest

from engine.decisions.evidence import check_evidence
from engine.decisions.rerouted import rerouted, routing_spec
from engine.decisions.routing_places import routing_places
from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.plan import Plan, plan_from_toml
from engine.replay.replay import replay
from policies.events import Events
from tests.helpers.reference_routing import alter, by_recency, most_important
from tests.helpers.routing_traces import EXPERTS, LAYERS, logits_trace
from tests.helpers.traces import make_trace
from tracekit.edit.slice import Selection, slice_trace
from tracekit.errors import PlanError
from tracekit.trace import Trace


def plan_of(profile: Path, keep: int = 7, capacity: str = "4/layer") -> Plan:
    return Plan(capacity, routing={"policy": "prune", "keep": keep, "profile": str(profile)})


def weighed(trace: Trace) -> np.ndarray:
    """What tokens gave each expert, [layers, experts], one by one."""
    found = np.zeros((trace.layers, trace.num_experts))
    for row, given in zip(trace.experts.tolist(), np.asarray(trace.weights, np.float64).tolist(), strict=True):
        for layer, (chosen, weights) in enumerate(zip(row, given, strict=True)):
            for expert, weight in zip(chosen, weights, strict=True):
                found[layer, expert] += weight
    return found


def test_places_are_by_weight_not_by_how_often(tmp_path: Path) -> None:
    experts = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])
    weights = np.array([[[0.3, 0.7]], [[0.3, 0.7]], [[0.3, 0.7]]])  # 0.9, 1.4, 0.7
    soft = make_trace(tmp_path / "soft.trace", experts, num_experts=4, weights=weights)
    bare = make_trace(tmp_path / "bare.trace", experts, num_experts=4)
    for trace, wanted in ((soft, [1, 0, 2, 3]), (bare, [0, 1, 2, 3])):
        places = routing_places(plan_of(trace.path).routing, [4])
        assert places is not None and places.tolist() == np.argsort(wanted).tolist()
    assert routing_places(Plan("1/layer", routing="substitute").routing, [4]) is None


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("keep", [2, 7])
def test_it_alters_as_the_obvious_implementation_does(tmp_path: Path, score: str, keep: int) -> None:
    profile, trace = (logits_trace(tmp_path / f"{seed}.trace", score, seed=seed, tokens=57) for seed in (1, 2))
    plan = plan_of(profile.path, keep)
    spec = cache_spec(trace.manifest.experts_per_layer, [], plan)
    found = rerouted(trace, spec, routing_spec(plan.routing, trace.manifest))
    left = most_important(weighed(profile), keep)
    experts, weights = alter(trace, "prune", {}, by_recency(LAYERS, EXPERTS, 4), left)
    np.testing.assert_array_equal(found.trace.experts, experts)
    np.testing.assert_array_equal(np.asarray(found.trace.weights), weights)
    assert found.altered().replaced > 0 and (found.altered().dropped > 0) == (keep == 2)
    plain = rerouted(trace, spec, routing_spec(plan.routing, trace.manifest), compiled=False)
    assert plain.trace.digest == found.trace.digest
    # With room for all that is left, only their first loads miss: the others take no slot.
    roomy = cache_spec(trace.manifest.experts_per_layer, [], plan_of(profile.path, keep, f"{keep}/layer"))
    events = Events.join([events for _, events in iter_decisions(found.trace, roomy)])
    assert int((events.kind > 2).sum()) <= keep * LAYERS


def test_the_requests_of_its_profile_are_no_evidence(tmp_path: Path) -> None:
    profile, other = (logits_trace(tmp_path / f"{seed}.trace", seed=seed) for seed in (1, 2))
    part = slice_trace(profile, Selection("0:2", None, None), tmp_path / "part.trace")
    plan = plan_of(profile.path)
    assert check_evidence(other, plan) == []
    with pytest.raises(PlanError, match=r"routing\.profile .*2 of the 2 requests .* no evidence.*--allow-fitted"):
        replay(part, plan, bounds=False)
    result = replay(part, plan, allow_fitted=True, bounds=False)
    assert any(text.startswith("NOT EVIDENCE: routing.profile") for text in result.warnings)


def test_a_plan_keeps_its_profile(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "p.trace")
    assert plan_from_toml(plan.to_toml(), "plan") == plan
    assert plan.to_dict()["routing"] == {"policy": "prune", "profile": str(tmp_path / "p.trace"), "keep": 7}

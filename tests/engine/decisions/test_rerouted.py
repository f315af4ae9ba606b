"""First-order routing: what a policy alters, given the cache as it is, and the trace that comes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.decisions.rerouted import Choices, rerouted, routing_spec
from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.misses import MissPlan
from engine.plan.plan import Plan
from policies.events import Events
from policies.misses import PARTS
from policies.rerouting import Altered
from tests.helpers.reference_routing import alter, by_recency
from tests.helpers.routing_traces import EXPERTS, LAYERS, logits_trace
from tests.helpers.traces import make_trace
from tracekit.errors import PlanError
from tracekit.rows import UNUSED
from tracekit.trace import Trace

POLICIES: dict[str, dict[str, float | bool]] = {
    "cache-prior": {"strength": 0.4},
    "substitute": {"strength": 0.4, "keep": 1},
    "drop-cold": {"share": 1.0, "renormalise": False},
    "adaptive-k": {"share": 0.6},
}


def plan_of(policy: str, capacity: str = "5/layer", **tables: object) -> Plan:
    return Plan(capacity, routing={"policy": policy, **POLICIES.get(policy, {})}, **tables)  # type: ignore[arg-type]


def spec_of(trace: Trace, plan: Plan):  # type: ignore[no-untyped-def]
    return cache_spec(trace.manifest.experts_per_layer, [], plan)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_it_alters_as_the_obvious_implementation_does(tmp_path: Path, policy: str, score: str) -> None:
    trace = logits_trace(tmp_path / "t.trace", score)
    plan = plan_of(policy)
    seen: list[Choices] = []
    found = rerouted(trace, spec_of(trace, plan), routing_spec(plan.routing, trace.manifest), on_choices=seen.append)
    experts, weights = alter(trace, policy, POLICIES[policy], by_recency(LAYERS, EXPERTS, 5))
    np.testing.assert_array_equal(found.trace.experts, experts)
    np.testing.assert_array_equal(np.asarray(found.trace.weights), weights)
    changed = (experts != trace.experts).sum()
    altered = found.altered()
    assert altered.choices == trace.experts.size and altered.replaced + altered.dropped == changed > 0
    assert altered.dropped == (experts == UNUSED).sum()
    assert (altered.dropped == 0) == (policy in ("cache-prior", "substitute"))
    assert sum((one.before != one.after).sum() for one in seen) == changed
    assert found.altered(warm_up=len(found.steps)) == Altered()


TABLES: list[dict[str, Any]] = [
    {},
    {"eviction": "score"},
    {"prefetch": "gate"},
    {"warm": "reset"},
    {"miss": "split"},
    {"miss": "host", "admission": {"policy": "score", "threshold": 0.2, "per_step": 3}},
]


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("policy", list(POLICIES))
def test_its_trace_gives_the_decisions_that_were_taken(
    tmp_path: Path, policy: str, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    plan = plan_of(policy, **tables)
    shared = cache_spec(trace.manifest.experts_per_layer, [], plan.replace(miss=MissPlan()))
    # Half of the misses are copied: a share is otherwise the machine's.
    spec = replace(shared, where="split", copied=PARTS // 2) if plan.miss.where == "split" else spec_of(trace, plan)
    taken: list[Events] = []
    from policies.cache import ExpertCache

    visit = ExpertCache.visit

    def noted(self: ExpertCache, *given: object) -> Events:
        taken.append(visit(self, *given))  # type: ignore[arg-type]
        return taken[-1]

    with monkeypatch.context() as patched:
        patched.setattr(ExpertCache, "visit", noted)
        found = rerouted(trace, spec, routing_spec(plan.routing, trace.manifest))
    again = Events.join([events for _, events in iter_decisions(found.trace, spec)])
    assert Events.join(taken).rows() == again.rows()
    assert found.trace.digest != trace.digest and found.trace.kinds == trace.kinds


@pytest.mark.parametrize("policy", [*POLICIES, "none"])
def test_at_strength_zero_nothing_is_altered(tmp_path: Path, policy: str) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    off = {"adaptive-k": {"share": 1.0}, "drop-cold": {"share": 0.0}, "none": {}}.get(policy, {"strength": 0.0})
    plan = Plan("2/layer", routing={"policy": policy, **off})
    found = rerouted(trace, spec_of(trace, plan), routing_spec(plan.routing, trace.manifest))
    np.testing.assert_array_equal(found.trace.experts, trace.experts)
    np.testing.assert_array_equal(np.asarray(found.trace.weights), np.asarray(trace.weights))
    assert found.altered().replaced == found.altered().dropped == 0


def test_interpreted_and_compiled_agree(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace", tokens=40)
    for policy in POLICIES:
        plan = plan_of(policy)
        one, other = (
            rerouted(trace, spec_of(trace, plan), routing_spec(plan.routing, trace.manifest), compiled=compiled)
            for compiled in (True, False)
        )
        assert one.trace.digest == other.trace.digest


def test_what_cannot_be_estimated_is_refused(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace", tokens=20)
    for tables, wanted in (
        ({"eviction": "belady"}, "knows the future"),
        ({"prefetch": "oracle"}, "knows the future"),
    ):
        plan = plan_of("cache-prior", **tables)
        with pytest.raises(PlanError, match=wanted):
            rerouted(trace, spec_of(trace, plan), routing_spec(plan.routing, trace.manifest))
    bare = make_trace(tmp_path / "bare.trace", trace.experts, num_experts=EXPERTS, weights=np.asarray(trace.weights))
    plan = plan_of("substitute")
    with pytest.raises(PlanError, match="record with --logits"):
        rerouted(bare, spec_of(bare, plan), routing_spec(plan.routing, bare.manifest))
    plan = plan_of("cache-prior")
    with pytest.raises(PlanError, match="is unknown"):
        rerouted(bare, spec_of(bare, plan), routing_spec(plan.routing, bare.manifest))
    plan = plan_of("drop-cold")
    assert rerouted(bare, spec_of(bare, plan), routing_spec(plan.routing, bare.manifest)).altered().dropped
    none = make_trace(tmp_path / "none.trace", trace.experts, num_experts=EXPERTS)
    with pytest.raises(PlanError, match="no gate weights"):
        rerouted(none, spec_of(none, plan), routing_spec(plan.routing, none.manifest))

"""Experts in two formats: decisions against a slow reference, and what holds whatever the rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.importance import importance_of
from engine.decisions.run import first_cache, iter_decisions
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec, slots_of
from policies.conformance import check
from policies.conformance.report import RULES
from policies.conformance.tier_trial import TierTrial
from policies.events import BYPASS, HIT_PREFETCHED, Events
from policies.precision.base import TierRule
from policies.registry import PRECISION, load_path, tier_rule
from policies.tiered_cache import TieredCache, cache_of
from tests.helpers.reference_cache import DROP, EVICT
from tests.helpers.scenarios import decisions, memory_trace, random_scenario
from tests.helpers.tiers import obvious_importance, reference, tiered_scenario
from tracekit.errors import PolicyError
from tracekit.rows import UNUSED

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("prefetch", "into_cache"), [("none", False), ("gate", False), ("gate", True)])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100))
def test_two_caches_and_a_rule_decide_as_the_reference(prefetch: str, into_cache: bool, seed: int, chunk: int) -> None:
    scenario = tiered_scenario(seed, prefetch, into_cache=into_cache)
    expected, served = reference(scenario)
    found = decisions(scenario, chunk=chunk, compiled=False)
    assert [event[:3] for event in found] == expected
    base = scenario.spec.layers * scenario.spec.experts
    # The demand that is handed on names the copies: what is timed and counted is what served.
    demanded: list[list[int]] = [[] for _ in served]
    for demand, _ in iter_decisions(scenario.trace, scenario.spec, chunk=chunk):
        for visit in range(demand.visits):
            part = slice(demand.start[visit], demand.start[visit + 1])
            assert sorted(demand.keys[part].tolist()) == sorted(demand.recency[part].tolist())
            number = demand.first_step * demand.layers + visit
            demanded[number] = [key % demand.experts for key in demand.keys[part].tolist() if key >= base]
    assert demanded == served


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_compiled_as_interpreted_and_slots_hold_what_hits_find_in_them(seed: int) -> None:
    scenario = tiered_scenario(seed, "gate")
    spec, found = scenario.spec, decisions(scenario)
    assert found == decisions(scenario, compiled=False)
    base, high_slots = spec.layers * spec.experts, slots_of(replace(spec, low=None))
    held: dict[int, int] = {}
    for _, kind, key, slot in found:
        assert (key >= base) == (slot >= high_slots) and slot < slots_of(spec)
        if kind in (EVICT, DROP):
            assert held.pop(slot) == key
        elif kind <= HIT_PREFETCHED:
            assert held[slot] == key
        elif kind != BYPASS:
            held[slot] = key  # what was there may have been used and found no room, of which no event tells
    lookups = sum(kind <= BYPASS for _, kind, *_ in found)
    assert lookups == sum(len(set(chosen)) for _, chosen in scenario.references()), "one copy serves a visit"


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, prefetch=st.sampled_from(["none", "gate", "previous-token"]))
def test_a_threshold_of_zero_is_the_high_cache_alone_and_beyond_one_the_low_cache(seed: int, prefetch: str) -> None:
    scenario = tiered_scenario(seed, prefetch)
    spec = scenario.spec
    assert spec.low is not None
    high = replace(spec, low=None)
    none_low = replace(spec, low=replace(spec.low, rule="miss-below", parameters={"threshold": 0.0}, popularity=None))
    assert decisions(scenario, none_low) == decisions(scenario, high)
    all_low = replace(none_low, prefetch="none", low=replace(none_low.low, parameters={"threshold": 2.0}))
    alone = replace(high, prefetch="none", capacity=spec.low.capacity)
    base, slots = spec.layers * spec.experts, slots_of(high)
    expected = [(visit, kind, key + base, slot + slots) for visit, kind, key, slot in decisions(scenario, alone)]
    assert decisions(scenario, all_low) == expected


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_importance_is_the_largest_share_and_the_best_place(seed: int) -> None:
    scenario = random_scenario(seed)
    trace, spec = scenario.trace, scenario.spec
    assert trace.weights is not None
    rows = scenario.step_rows()[0]
    ids, weights = trace.experts[rows, 0], trace.weights[rows, 0]
    demand = list(dict.fromkeys(expert for expert in ids.ravel().tolist() if expert != UNUSED))
    share, rank = importance_of(ids, weights, demand, spec.experts)
    assert list(zip(share, rank, strict=True)) == [obvious_importance(ids, weights, expert) for expert in demand]


def test_equal_weights_rank_by_slot_and_no_weight_at_all_is_no_share() -> None:
    ids = np.array([[2, 0, 1], [UNUSED, 3, UNUSED]], np.uint16)
    share, rank = importance_of(ids, np.array([[1, 1, 2], [9, 0, 9]], np.float16), [2, 0, 1, 3], 4)
    assert share == [0.25, 0.25, 0.5, 0.0] and rank == [1, 2, 0, 0]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_no_rule_sees_the_future(seed: int) -> None:
    """Whatever is routed later, what comes before it is decided alike."""
    scenario = tiered_scenario(seed, "previous-token")
    trace = scenario.trace
    steps = sorted(set(trace.step.tolist()))
    later = trace.step > steps[len(steps) // 2]
    other = trace.experts.copy()
    other[later] = other[later][::-1]
    changed = memory_trace(other, list(trace.manifest.experts_per_layer), trace.step)
    until = (len(steps) // 2 + 1) * scenario.spec.layers
    found = [event for event in decisions(replace(scenario, trace=changed)) if event[0] < until]
    assert found == [event for event in decisions(scenario) if event[0] < until]


def mine(text: str, folder: Path) -> str:
    (folder / "mine.py").write_text(
        "from policies.fields import parameter, per_expert\nfrom policies.precision.base import TierRule\n"
        "import numpy as np\n\n\nclass Mine(TierRule):\n" + text
    )
    return f"{folder / 'mine.py'}:Mine"


def test_a_rule_of_ones_own_keeps_state_and_reads_what_is_there(tmp_path: Path) -> None:
    """The low copy will do until an expert has been asked for twice, or where it is there already."""
    name = mine(
        """    reads = "nothing"
    often = parameter(2)
    count = per_expert(np.int64)

    def low(self, expert, share, rank, popularity, high_there, low_there):
        self.count[expert] += 1
        return low_there or self.count[expert] < self.often
""",
        tmp_path,
    )
    scenario = tiered_scenario(3)
    assert scenario.spec.low is not None
    low = replace(scenario.spec.low, rule=name, parameters={"often": 2}, capacity=(0,) * len(scenario.spec.capacity))
    spec = replace(scenario.spec, low=low)
    cache = cache_of(spec)
    assert isinstance(cache, TieredCache)
    asked = [cache.visit(0, [0])[1] for _ in range(3)]
    assert asked == [[True], [False], [False]]
    with pytest.raises(PolicyError, match="no parameter 'oftn'; did you mean 'often'"):
        cache_of(replace(spec, low=replace(low, parameters={"oftn": 2})))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("    def low(self, expert, share): return True\n", "wrong signature"),
        ("    reads = 'logits'\n", "no signal"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    scenario = tiered_scenario(3)
    assert scenario.spec.low is not None
    low = replace(scenario.spec.low, rule=mine(text, tmp_path), parameters=None)
    with pytest.raises(PolicyError, match=complaint):
        cache_of(replace(scenario.spec, low=low))


def test_what_must_know_which_copy_is_asked_for_later_is_refused() -> None:
    spec = tiered_scenario(5).spec
    for fields in ({"eviction": "belady"}, {"prefetch": "oracle"}, {"eviction": "learned"}):
        with pytest.raises(PolicyError, match="which copy will be asked for"):
            cache_of(replace(spec, **fields))  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="two formats"):
        ExpertCache(spec)


def test_starting_anew_forgets_both_caches() -> None:
    spec = CacheSpec(1, 4, (1,), np.ones(4, np.int64))
    low = tiered_scenario(5).spec.low
    assert low is not None
    low = replace(low, capacity=(1,), rule="rank", parameters={"n": 0}, popularity=None)
    cache = first_cache(replace(spec, low=low))
    assert isinstance(cache, TieredCache)
    cache.visit(0, [2])
    cache.high.visit(0, [1])
    assert cache.held() == [(1, 0), (4 + 2, cache.high.slots)]
    cache.restart()
    assert cache.held() == []
    events = Events.join([cache.visit(0, [])[0]])
    assert sorted(row[1:3] for row in events.rows()) == [(EVICT, 1), (EVICT, 6)]


BAD = """
import numpy as np

from policies.fields import per_expert
from policies.precision.base import TierRule

CALLS = []


class NoAnswer(TierRule):
    def low(self, expert, share, rank, popularity, high_there, low_there):
        return share


class Undeclared(TierRule):
    def low(self, expert, share, rank, popularity, high_there, low_there):
        self.last = expert
        return True


class Outsider(TierRule):
    def low(self, expert, share, rank, popularity, high_there, low_there):
        CALLS.append(expert)
        return len(CALLS) % 3 == 0


class Outside(TierRule):
    count = per_expert(np.int64)

    def low(self, expert, share, rank, popularity, high_there, low_there):
        return self.count[expert + 7] > 0


class Other(TierRule):
    def low(self, expert, share):
        return True


class Good(TierRule):
    count = per_expert(np.int64)

    def low(self, expert, share, rank, popularity, high_there, low_there):
        self.count[expert] += 1
        return self.count[expert] < 3 or low_there
"""


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("NoAnswer", "answers"),
        ("Undeclared", "state"),
        ("Outsider", "deterministic"),
        ("Outside", "bounds"),
        ("Other", "signatures"),
        ("Good", ""),
    ],
)
def test_a_trial_finds_what_breaks_the_contract(name: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(BAD)
    policy = load_path(f"{tmp_path / 'rules.py'}:{name}")
    assert isinstance(policy, type) and issubclass(policy, TierRule)
    trial = TierTrial(name, policy, lambda *_: None)
    outcomes = {outcome.rule: outcome.status for outcome in trial.interpreted()}
    assert list(outcomes) == list(RULES["precision"])
    assert [one for one, status in outcomes.items() if status == "fail"] == ([rule] if rule else [])
    if not rule:
        assert set(outcomes.values()) == {"pass"} and not list(trial.compiled(trial.digest()))


def test_the_built_in_rules_keep_the_contract() -> None:
    for name in PRECISION:
        trial = TierTrial(name, tier_rule(name), lambda *_: None)
        assert {outcome.status for outcome in trial.interpreted()} == {"pass"}
    (report,) = check("rank")
    assert report.kind == "precision" and report.passed

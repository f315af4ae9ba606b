"""`policies check` catches each way to break the contract, and finds nothing wrong with the project's own policies."""

import re
import textwrap
import time
from pathlib import Path

import pytest

from policies import registry
from policies.conformance import Outcome, check
from policies.conformance.report import EXEMPT, FAIL, NOT_RUN, PASS, RULES
from policies.conformance.rules import BASES, Trial
from policies.conformance.scenario import Scenario, scenarios, shrink
from tracekit.errors import PolicyError

HEAD = """
import time
import numpy as np
from policies.eviction.base import EvictionPolicy
from policies.eviction.belady import Belady
from policies.eviction.ordered import Ordered, settle
from policies.fields import parameter, per_expert, per_group, scalar
from policies.prefetch.base import Prefetcher
from policies.prefetch.oracle import OraclePrefetch

SEEN = []

"""
VICTIM = """
class Bad(EvictionPolicy):
    def victim(self, cache, group, incoming, now, signal):
        {}
"""
SUGGEST = """
class Bad(Prefetcher):
    def suggest(self, target, hint, out):
        {}
"""


def write(folder: Path, code: str) -> str:
    path = folder / "bad.py"
    path.write_text(HEAD + textwrap.dedent(code))
    return f"{path}:Bad"


def interpreted(name: str) -> dict[str, Outcome]:
    """The outcomes of the rules that need no compiled code, tried in this process."""
    policy = registry.load_path(name)
    kind = next(kind for kind, base in BASES.items() if issubclass(policy, base))
    return {o.rule: o for o in Trial(kind, name, policy, lambda *_: None).interpreted()}


BAD = {
    "no such key": (VICTIM.format("return 1000000"), "victims", ["1000000", "no expert's key"]),
    "negative key": (VICTIM.format("return -7"), "victims", ["-7"]),
    "not resident": (VICTIM.format("return incoming"), "victims", ["not in the cache"]),
    "no number": (VICTIM.format("return None"), "victims", ["None"]),
    "a float": (VICTIM.format("return float(cache.resident[cache.first[group]])"), "victims", ["whole number"]),
    "another group": (
        VICTIM.format("return cache.resident[0] if cache.resident_count[0] else -1"),
        "victims",
        ["another group"],
    ),
    "demanded": (VICTIM.format("return cache.resident[cache.first[group]]"), "demand", ["cache.seen[expert] == now"]),
    "outside an array": (VICTIM.format("return cache.resident[1000]"), "bounds", ["1000", "bad.py:"]),
    "raises": (VICTIM.format("return int('x')"), "runs", ["ValueError", "bad.py:"]),
    "writes to the cache": (VICTIM.format("cache.capacity[group] += 1\n        return -1"), "state", ["only read"]),
    "widens the cache": (
        VICTIM.format("cache.used.base[group] -= cache.size[incoming]\n        return -1"),
        "capacity",
        ["holds", "of"],
    ),
    "swallows": (
        VICTIM.format(
            "try:\n            self.rank(-999, group, now)\n        except Exception:\n            pass"
            "\n        return -1"
        )
        + "    def rank(self, expert, group, now):\n        return np.nan\n",
        "runs",
        ["nan"],
    ),
    "undeclared": (
        "class Bad(EvictionPolicy):\n    def on_insert(self, expert, group, now, signal):\n        self.born = now",
        "state",
        ["self.born", "not declared", "scalar"],
    ),
    "reads undeclared": (
        "class Bad(EvictionPolicy):\n    def rank(self, expert, group, now):\n        return self.born[expert]",
        "state",
        ["self.born", "not declared"],
    ),
    "rebinds": (
        "class Bad(EvictionPolicy):\n    n = scalar(np.int64)\n"
        "    def on_miss(self, expert, group, now, signal):\n        self.n = self.n + 1",
        "state",
        ["self.n[...]"],
    ),
    "short signature": (
        "class Bad(EvictionPolicy):\n    def rank(self, expert, group): return 0",
        "signatures",
        ["rank(self, expert, group)", "def rank(self, expert, group, now)"],
    ),
    "misspelt hook": (
        "class Bad(EvictionPolicy):\n    def on_evicted(self, expert, group, now): pass",
        "signatures",
        ["on_evicted", "did you mean 'on_evict'"],
    ),
    "clock": (
        "class Bad(EvictionPolicy):\n    def rank(self, expert, group, now): return time.perf_counter_ns() % 7",
        "deterministic",
        ["two runs differ"],
    ),
    "hidden state": (
        "class Bad(EvictionPolicy):\n    def rank(self, expert, group, now):\n"
        "        SEEN.append(expert)\n        return len(SEEN) % 5",
        "deterministic",
        ["declared arrays"],
    ),
    "rank changes with time": (
        "class Bad(Ordered):\n    def rank(self, expert, group, now):\n        return (expert + now) % 3",
        "order",
        ["ranks least", "settle()"],
    ),
    "rank changes unsettled": (
        """
        class Bad(Ordered):
            uses = per_expert(np.int64)

            def on_hit(self, expert, group, now, signal):
                self.uses[expert] -= 1

            def rank(self, expert, group, now):
                return self.uses[expert]

            def on_reference(self, expert, group, now, signal):
                pass
        """,
        "order",
        ["ranks least", "settle()"],
    ),
    "peeks": ("class Bad(Belady):\n    bound = False", "no-peeking", ["future", "'next-use'"]),
    "too many": (SUGGEST.format("return len(out) + 1"), "suggestions", ["there is room for"]),
    "another layer": (
        SUGGEST.format("out[0] = (target - 1) * self.experts\n        return 1"),
        "suggestions",
        ["no expert of target layer"],
    ),
    "nothing": (SUGGEST.format("out[0] = -1\n        return 1"), "suggestions", ["named -1"]),
    "count is no number": (SUGGEST.format("return None"), "suggestions", ["None"]),
    "beyond out": (SUGGEST.format("out[len(out)] = 0\n        return 0"), "bounds", ["bad.py:"]),
    "writes demand": (
        "class Bad(Prefetcher):\n    def observe(self, layer, demand):\n        demand[:] = 0",
        "state",
        ["only read"],
    ),
    "prefetcher peeks": ("class Bad(OraclePrefetch):\n    bound = False", "no-peeking", ["'future'"]),
    "suggests at random": (
        SUGGEST.format("out[0] = target * self.experts + time.perf_counter_ns() % self.experts\n        return 1"),
        "deterministic",
        ["two runs differ"],
    ),
}


@pytest.mark.parametrize("way", BAD)
def test_each_way_to_break_the_contract_is_caught(way: str, tmp_path: Path) -> None:
    code, rule, words = BAD[way]
    outcomes = interpreted(write(tmp_path, code))
    assert outcomes[rule].status == FAIL
    for word in words:
        assert word in outcomes[rule].message
    assert all("\n" not in outcome.message for outcome in outcomes.values())
    assert not any(outcome.status == PASS for name, outcome in outcomes.items() if name not in ("signatures", rule))


def test_an_example_is_small(tmp_path: Path) -> None:
    outcomes = interpreted(write(tmp_path, VICTIM.format("return incoming")))
    # Two experts that do not fit into one slot: less cannot show it.
    _, example = outcomes["victims"].message.split("; with ")
    assert re.fullmatch(r"1 layer of 3 experts, 1 slot\(s\); step 0 layer 0: \d, step 1 layer 0: \d", example)


@pytest.mark.parametrize("name", ["arc", "random", "belady-bypass", "lfu", "lru-k"])
def test_good_policies_pass(name: str) -> None:
    trial = Trial("eviction", name, registry.eviction_policy(name), lambda *_: None)
    outcomes = list(trial.interpreted())
    assert [o.rule for o in outcomes] == [rule for rule in RULES["eviction"] if rule != "compiled"]
    exempt = {o.rule for o in outcomes if o.status == EXEMPT}
    ordered = name in ("lfu", "lru-k")
    assert exempt == ({"demand", "no-peeking"} if trial.policy.bound else set()) | (set() if ordered else {"order"})
    assert all(o.status in (PASS, EXEMPT) for o in outcomes)


def test_scenarios_are_the_same_each_time_and_hard_enough() -> None:
    drawn = list(scenarios())
    assert drawn == list(scenarios())
    assert any(len(s.capacity) > 1 for s in drawn) and any(len(s.capacity) < s.layers for s in drawn)
    assert any(len(set(s.size)) > 1 for s in drawn) and any(0 in s.capacity for s in drawn)
    assert any(s.into_cache for s in drawn) and any(not v.demand for s in drawn for v in s.visits)
    assert any(sum(s.size[e] for e in v.demand) > min(s.capacity) for s in drawn for v in s.visits)


def test_shrinking_ends_at_what_matters() -> None:
    def fails(scenario: Scenario) -> bool:
        return sum(2 in visit.demand for visit in scenario.visits) >= 2

    start = next(s for s in scenarios() if fails(s) and len(s.visits) > 20)
    assert sum(len(visit.demand) for visit in shrink(start, fails).visits) == 2


# What follows runs processes of its own, as the command does.


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))


def statuses(name: str, seconds: float = 10.0) -> dict[str, Outcome]:
    (report,) = check(name, seconds=seconds)
    assert [outcome.rule for outcome in report.outcomes] == list(RULES[report.kind])
    assert report.passed == all(o.status in (PASS, EXEMPT) for o in report.outcomes)
    return {outcome.rule: outcome for outcome in report.outcomes}


def test_a_hook_that_never_returns(tmp_path: Path) -> None:
    started = time.monotonic()
    name = write(tmp_path, VICTIM.format("while True:\n            pass"))
    outcomes = statuses(name, seconds=0.5)
    assert time.monotonic() - started < 60
    assert outcomes["terminates"].status == FAIL
    assert "victim() never returns" in outcomes["terminates"].message and "bad.py:" in outcomes["terminates"].message
    assert "1 layer of 3 experts" in outcomes["terminates"].message
    assert {o.status for rule, o in outcomes.items() if rule != "terminates"} == {NOT_RUN}


def test_a_hook_that_ends_the_process(tmp_path: Path) -> None:
    outcomes = statuses(write(tmp_path, "import os\n" + VICTIM.format("os._exit(0)")))
    assert outcomes["runs"].status == FAIL and "ended with status 0" in outcomes["runs"].message


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    code = """
        class Bad(EvictionPolicy):
            def rank(self, expert, group, now):
                return {"a": expert}.get("b", 0)
    """
    outcome = statuses(write(tmp_path, code))["compiled"]
    assert outcome.status == FAIL and "cannot be compiled" in outcome.message


def test_compiled_code_that_decides_otherwise(tmp_path: Path) -> None:
    # Python's integers grow, compiled ones wrap: expert 1 is worth more than expert 0, or less.
    code = """
        class Bad(EvictionPolicy):
            def rank(self, expert, group, now):
                return (int(expert) + 1) * 4611686018427387904
    """
    outcome = statuses(write(tmp_path, code))["compiled"]
    assert outcome.status == FAIL
    assert re.search(r"interpreted: visit 2 evict expert \d of layer 0, compiled: visit 2 evict", outcome.message)


def test_another_process_decides_otherwise(tmp_path: Path) -> None:
    """Every process that loads this policy finds the order of ranks turned round."""
    code = """
        from pathlib import Path
        loads = Path(__file__).with_suffix(".loads")
        count = len(loads.read_text()) if loads.exists() else 0
        loads.write_text("x" * (count + 1))
        SIGN = -1 if count % 2 else 1
        class Bad(EvictionPolicy):
            def rank(self, expert, group, now):
                return SIGN * int(expert)
    """
    outcomes = statuses(write(tmp_path, code))
    assert outcomes["deterministic"].status == FAIL and "another process" in outcomes["deterministic"].message
    assert outcomes["compiled"].status == NOT_RUN


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("class Bad(EvictionPolicy) pass", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("class Bad: pass", "not a subclass"),
        ("class Good(EvictionPolicy): pass", "has no class 'Bad'"),
        ("while True: pass", "never returns"),
        ("import os; os._exit(3)", "status 3"),
    ],
)
def test_what_cannot_be_loaded(code: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=word):
        check(write(tmp_path, code), seconds=0.5)


def test_unknown_names() -> None:
    with pytest.raises(PolicyError, match="did you mean 'lru'"):
        check("lruu")
    with pytest.raises(PolicyError, match=r"none\.py"):
        check("./none.py:Mine")


@pytest.mark.parametrize(
    ("hook", "right"),
    [
        ("def on_hit(self, expert, group, now): pass", "def on_hit(self, expert, group, now, signal)"),
        ("def on_hit(self, key, group, now, signal): pass", "def on_hit(self, expert, group, now, signal)"),
        ("def rank(self, expert, group, now=0): return 0", "def rank(self, expert, group, now)"),
        ("rank = staticmethod(lambda expert, group, now: 0)", "def rank(self, expert, group, now)"),
        ("rank = 3", "def rank(self, expert, group, now)"),
    ],
)
def test_wrong_signatures_are_refused_when_loaded(hook: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        registry.eviction_policy(write(tmp_path, f"class Bad(EvictionPolicy):\n    {hook}"))
    assert right in str(caught.value) and "\n" not in str(caught.value)

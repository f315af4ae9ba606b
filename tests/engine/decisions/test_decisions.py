"""Decisions on real traces: the residency an engine recorded, and the hit ratios its project published."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from engine.replay.result import Result
from policies.events import BYPASS, LOAD, Events
from tests.helpers.scenarios import memory_trace
from tracekit.errors import PlanError
from tracekit.importers import import_trace
from tracekit.trace import Trace

BUDGETS = (250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 6000, 8000)
# What the published names mean here.
POLICIES = {"lru": "lru", "lfu": "lfu-perfect", "belady": "belady"}


@pytest.fixture(scope="module")
def phone(shared_data: Path) -> Path:
    return shared_data / "qwen3-30b-a3b-phone"


@pytest.fixture(scope="module")
def qwen(phone: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return import_trace("bigmoe-csv", phone / "route.csv", tmp_path_factory.mktemp("qwen") / "qwen.trace")


def replayed(trace: Trace, capacity: str, policy: str) -> Result:
    plan = plan_from_dict({"cache": {"capacity": capacity}, "eviction": {"policy": policy}})
    return replay(trace, plan, bounds=False)


def recorded_residency(route: Path) -> Iterator[tuple[int, int, int, bool]]:
    """Pass, layer, expert, resident: the first mention of each expert in each visit, from the file itself."""
    seen = set()
    with route.open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            # The prompt is one pass; then each token is one.
            number = 0 if row["phase"] == "0" else int(row["step"])
            lookup = (number, int(row["layer"]), int(row["expert"]))
            if lookup not in seen:
                seen.add(lookup)
                yield *lookup, int(row["residency"]) > 0


def test_every_lookup_agrees_with_the_residency_an_engine_recorded(phone: Path, qwen: Trace) -> None:
    recorded = list(recorded_residency(phone / "route.csv"))
    assert len(recorded) == 39_526
    passes = sorted({number for number, *_ in recorded})
    expected = {(passes.index(n) * 48 + layer, layer * 128 + expert, hit) for n, layer, expert, hit in recorded}
    plan = plan_from_dict({"cache": {"capacity": "4000MiB"}})
    spec = cache_spec(qwen.manifest.experts_per_layer, qwen.manifest.expert_bytes, plan)
    found = [
        (visit, key, kind < LOAD)
        for _, events in iter_decisions(qwen, spec)
        for visit, kind, key in zip(events.visit.tolist(), events.kind.tolist(), events.expert.tolist(), strict=True)
        if kind <= BYPASS
    ]
    assert len(found) == 39_526
    assert set(found) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_hit_ratios_agree_with_the_published_curve(policy: str, phone: Path, qwen: Trace) -> None:
    with (phone / "published-curve.csv").open() as file:
        published = {int(row["budget_mib"]): row for row in csv.DictReader(file) if row["policy"] == policy}
    assert tuple(published) == BUDGETS
    for budget, row in published.items():
        result = replayed(qwen, f"{budget}MiB", POLICIES[policy])
        assert result.bytes_loaded is not None
        assert f"{100 * result.hit_ratio:.3f}" == row["hit_pct_cum"], budget
        assert f"{100 * result.phases.decode.hit_ratio:.3f}" == row["hit_pct_decode"], budget
        assert f"{result.bytes_loaded / 2**20:.1f}" == row["read_mib"], budget


def test_bytes_loaded_are_those_of_the_loaded_experts(qwen: Trace) -> None:
    total = 0

    def add(_: object, events: object) -> None:
        nonlocal total
        copied = events.expert[(events.kind == LOAD) | (events.kind == BYPASS)]  # type: ignore[attr-defined]
        total += sum(qwen.manifest.expert_bytes[key // 128] for key in copied.tolist())

    plan = plan_from_dict({"cache": {"capacity": "6/layer"}})
    assert replay(qwen, plan, bounds=False, on_events=add).bytes_loaded == total


@pytest.mark.parametrize(("policy", "hits"), [("lru", 354), ("lfu-perfect", 460)])
def test_switch_base_8_hits(policy: str, hits: int, shared_data: Path, tmp_path: Path) -> None:
    source = json.loads((shared_data / "switch-base-8" / "router-trace.v2.json").read_text())
    experts = np.array(source["selections"])
    assert experts.shape == (215, 6, 1)
    np.savez_compressed(tmp_path / "switch.npz", experts=experts)
    trace = import_trace("npz", tmp_path / "switch.npz", tmp_path / "switch.trace")
    result = replayed(trace, "12", policy)
    assert (result.lookups, result.hits) == (1290, hits)
    assert result.bytes_loaded is None


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_pieces_of_any_size_decide_as_the_whole(policy: str, qwen: Trace) -> None:
    plan = plan_from_dict({"cache": {"capacity": "20/layer"}, "eviction": {"policy": policy}})
    spec = cache_spec(qwen.manifest.experts_per_layer, [], plan)
    whole, pieces = (Events.join([e for _, e in iter_decisions(qwen, spec, chunk=c)]) for c in (1 << 20, 999))
    assert np.array_equal(whole.code, pieces.code) and np.array_equal(whole.start, pieces.start)


def test_a_trace_without_lookahead_says_what_it_has() -> None:
    trace = memory_trace(np.zeros((2, 3, 1), np.uint16), [2, 2, 2], lookahead={1: np.zeros((2, 2, 2), np.float16)})
    plan = plan_from_dict({"cache": {"capacity": "2"}, "prefetch": {"predictor": "gate", "distance": 2}})
    with pytest.raises(PlanError, match=r"distance 2.*it has: 1.*--lookahead 2"):
        list(iter_decisions(trace, cache_spec([2, 2, 2], [], plan)))


def test_layers_of_unequal_width_keep_their_own_experts() -> None:
    """Layer 0 has two experts, layer 1 four; keys are padded to four a layer and the capacity is of all six."""
    plan = plan_from_dict({"cache": {"capacity": "100%"}})
    spec = cache_spec([2, 4], [], plan)
    assert (spec.layers, spec.experts, spec.capacity) == (2, 4, (6,))

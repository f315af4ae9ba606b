"""Domains: placements for each, when the cache switches, and what that costs."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.clustering import clusters_of
from engine.decisions.domains import log_shares, nearest, switches_of
from engine.decisions.placing import place
from engine.decisions.spec import cache_spec
from engine.plan.placement import load_placement, save_placement
from engine.plan.plan import Plan
from engine.replay.replay import replay
from policies.switching import Domains, Kept
from tests.helpers.scenarios import memory_trace
from tests.helpers.traces import domain_trace
from tracekit.batched import batched
from tracekit.edit.slice import Selection, slice_trace
from tracekit.errors import PlanError
from tracekit.of_requests import of_requests, one_by_one
from tracekit.trace import Trace

LAYERS, EXPERTS = 3, 8
NAMES = ("code", "prose")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace]:
    folder = tmp_path_factory.mktemp("domains")
    return domain_trace(folder / "profile.trace", 1), domain_trace(folder / "test.trace", 2)


@pytest.fixture(scope="module")
def placed(traces: tuple[Trace, Trace]) -> str:
    path = traces[0].path.with_name("p.placement.toml")
    save_placement(place(traces[0], "2/layer", labels=traces[0].manifest.domains), path)
    return str(path)


def test_a_domains_table_is_the_placement_of_its_requests(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    whole = traces[0]
    for by, beside in (("popularity", None), ("marginal", "2/layer")):
        found = place(whole, "2/layer", by=by, beside=beside, labels=whole.manifest.domains)  # type: ignore[arg-type]
        assert found.told_by == "labels" and list(found.domains) == sorted(NAMES)
        assert found.pinned == place(whole, "2/layer", by=by, beside=beside).pinned  # type: ignore[arg-type]
        for name, domain in found.domains.items():
            numbers = [str(n) for n, label in enumerate(whole.manifest.domains) if label == name]
            part = slice_trace(whole, Selection(requests=",".join(numbers)), tmp_path / f"{by}-{name}.trace")
            alone = place(part, "2/layer", by=by, beside=beside)  # type: ignore[arg-type]
            assert domain.pinned == alone.pinned and domain.requests == len(numbers)
            chosen = [int((part.experts[:, 1] == expert).sum()) for expert in range(EXPERTS)]
            assert domain.counts["1"] == chosen


def expected_switches(trace: Trace, known: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """Step by step: what most requests in flight say; `known` is a request's step from which, and which."""
    numbers = np.unique(trace.step)
    within = {r: [int(np.searchsorted(numbers, s)) for s in trace.step[trace.request == r]] for r in known}
    now, found = -1, []
    for step in range(len(numbers)):
        if not any(first == step and step <= max(within[r]) for r, (first, label) in known.items() if label >= 0):
            continue
        votes = [0] * len(NAMES)
        for request, (first, label) in known.items():
            if label >= 0 and first <= step <= max(within[request]):
                votes[label] += 1
        best = [place for place, count in enumerate(votes) if count == max(votes)]
        if now not in best:
            now = best[0]
            found.append((step, now))
    return found


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 4), detect=st.one_of(st.none(), st.integers(1, 9)))
def test_switches_are_those_of_counting_step_by_step(seed: int, batch: int, detect: int | None) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, int(rng.integers(1, 7)))
    request = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    prompt = np.concatenate([np.arange(length) < rng.integers(1, length + 1) for length in lengths])
    step = np.cumsum(~prompt | (np.diff(request, prepend=-1) > 0)).astype(np.int32) - 1
    experts = rng.integers(0, EXPERTS, (len(request), 2, 1)).astype(np.uint16)
    trace = memory_trace(experts, [EXPERTS] * 2, step, None, (~prompt).astype(np.uint8), request)
    labels = [("", *NAMES)[place] for place in rng.integers(0, 3, len(lengths))]
    trace = trace.with_manifest(msgspec.structs.replace(trace.manifest, domains=[*labels, "code"]))
    trace = trace if batch == 1 else batched(trace, batch)
    counts = rng.integers(0, 20, (len(NAMES), 2 * EXPERTS))
    domains = Domains(tuple(map(Kept, NAMES)), counts, detect)
    numbers, known = np.unique(trace.step), {}
    for number, label in enumerate(labels):
        rows = np.flatnonzero(trace.request == number)
        if detect is None:
            first, own = rows[0], ("", *NAMES).index(label) - 1
        elif len(rows) < detect:
            first, own = rows[0], -1
        else:
            # Naive Bayes by hand: the domain under which the first tokens' choices are likeliest.
            first, chosen = rows[detect - 1], trace.experts[rows[:detect], :, 0]
            shares = (counts.reshape(2, 2, EXPERTS) + 1.0) / (counts.reshape(2, 2, EXPERTS) + 1.0).sum(2, keepdims=True)
            likely = [sum(np.log(one[layer, e]) for token in chosen for layer, e in enumerate(token)) for one in shares]
            own = nearest(
                log_shares(counts, EXPERTS), np.bincount((chosen + np.array([0, EXPERTS])).ravel(), minlength=16)
            )
            assert likely[own] >= max(likely) - 1e-4
        known[number] = (int(np.searchsorted(numbers, trace.step[first])) + (detect is not None), own)
    if detect is None and not any(labels):
        labels = ["code"]  # of a request that never comes
    assert [tuple(switch) for switch in switches_of(trace, domains, EXPERTS)] == expected_switches(trace, known)


def test_placing_by_domain_hits_more_where_domains_differ(traces: tuple[Trace, Trace], placed: str) -> None:
    pooled, label, detected = (
        replay(traces[1], Plan("3/layer", placement={"pinned": placed, **how}), bounds=False)
        for how in ({}, {"by": "label"}, {"detect": 8})
    )
    assert label.hit_ratio > detected.hit_ratio > pooled.hit_ratio
    assert pooled.switching is None
    assert label.switching is not None and detected.switching is not None
    assert label.switching.switches == detected.switching.switches == 12  # in turn, of 12 requests


def test_switches_cost_what_they_copy(traces: tuple[Trace, Trace], placed: str) -> None:
    """All of the loads ahead, where nothing else loads ahead; in the bytes, in the time, and in no miss."""
    plan = Plan("3/layer", placement={"pinned": placed, "by": "label"}, weights="bf16")
    result = replay(traces[1], plan, "rtx3060", model_shape="mixtral-8x7b")
    switching = result.switching
    assert switching is not None and result.time is not None and result.bytes_loaded is not None
    assert result.prefetches == switching.copies > 0
    size = result.bytes_loaded // (result.loads + result.bypasses + result.prefetches)
    assert switching.bytes_loaded == switching.copies * size
    assert sum(result.time.prefetches.values()) <= switching.copies
    assert result.regret is not None and result.bounds is not None
    before = replay(traces[1], plan, bounds=False, warm_up=200)
    assert before.switching is not None and before.switching.switches == 12 - 5


def test_clusters_find_domains_that_differ(traces: tuple[Trace, Trace]) -> None:
    found = clusters_of(traces[0], 2, seed=3)
    assert found == clusters_of(traces[0], 2, seed=3)
    by_cluster = {
        name: {found[n] for n, label in enumerate(traces[0].manifest.domains) if label == name} for name in NAMES
    }
    assert all(len(own) == 1 for own in by_cluster.values()) and by_cluster["code"] != by_cluster["prose"]
    part = of_requests(traces[0], [0, 1, 2, 4, 6])
    assert clusters_of(part, 2)[0] == "cluster-0" and clusters_of(part, 2)[3] == ""
    placement = place(traces[0], "2/layer", clusters=2)
    assert placement.told_by == "clusters"
    assert sorted(d.pinned.items() for d in placement.domains.values()) == sorted(
        d.pinned.items() for d in place(traces[0], "2/layer", labels=traces[0].manifest.domains).domains.values()
    )
    with pytest.raises(PlanError, match="13 clusters of 12 requests"):
        clusters_of(traces[0], 13)


def test_no_request_is_evidence_whatever_its_domain(traces: tuple[Trace, Trace], placed: str) -> None:
    for number in (0, 1):
        own = of_requests(traces[0], [number])
        for plan in (
            Plan("3/layer", placement={"pinned": placed, "by": "label"}),
            Plan("3/layer", warm=placed, placement={"detect": 4}),
        ):
            with pytest.raises(PlanError, match=r"made from 1 of the 1 requests .* no evidence"):
                replay(own, plan, bounds=False)


def test_requests_one_by_one(traces: tuple[Trace, Trace]) -> None:
    found = one_by_one(traces[0], [3, 0])
    assert found.request.tolist() == [3] * 40 + [0] * 40
    assert found.step.tolist() == list(range(80))
    np.testing.assert_array_equal(found.experts[:40], traces[0].experts[120:160])
    assert found.digest != of_requests(traces[0], [0, 3]).digest != traces[0].digest
    assert found.manifest.requests == 2 and found.manifest.tokens == 80


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"placement": {"pinned": "layers 0", "by": "label"}}, "choose among a placement's domains"),
        ({"placement": {"detect": 8}}, "choose among a placement's domains"),
        ({"placement": {"pinned": "PLAIN", "by": "label"}}, "knows no domains: make one with"),
        ({"placement": {"pinned": "P", "by": "label"}, "eviction": "static"}, "never changes what it holds"),
        ({"placement": {"pinned": "P", "by": "label"}, "warm": "OTHER"}, "have other domains: code, prose; a, b"),
    ],
)
def test_plans_that_name_no_domains(
    plan: dict[str, Any], reason: str, traces: tuple[Trace, Trace], placed: str, tmp_path: Path
) -> None:
    found = load_placement(placed)
    save_placement(msgspec.structs.replace(found, domains={}), tmp_path / "plain.toml")
    save_placement(
        msgspec.structs.replace(found, domains=dict(zip("ab", found.domains.values(), strict=True))),
        tmp_path / "o.toml",
    )
    files = {"P": placed, "PLAIN": str(tmp_path / "plain.toml"), "OTHER": str(tmp_path / "o.toml")}
    given: dict[str, Any] = {
        key: {k: files.get(v, v) for k, v in value.items()} if isinstance(value, dict) else files.get(value, value)
        for key, value in plan.items()
    }
    if given.get("eviction") == "static":
        given["eviction"] = {"policy": "static", "profile": str(traces[0].path)}
    with pytest.raises(PlanError, match=reason):
        cache_spec([EXPERTS] * LAYERS, [], Plan("3/layer", **given))


def test_labels_that_cannot_be(traces: tuple[Trace, Trace], placed: str) -> None:
    plan = Plan("3/layer", placement={"pinned": placed, "by": "label"})
    for labels, reason in (([], "carries none of its requests' domains"), (["poetry"] * 12, "domain 'poetry', which")):
        other = traces[1].with_manifest(msgspec.structs.replace(traces[1].manifest, domains=labels))
        with pytest.raises(PlanError, match=reason):
            replay(other, plan, bounds=False)
    with pytest.raises(PlanError, match="requests of 1 domains: a placement by domain needs two"):
        place(traces[0], "2/layer", labels=["code"] * 12)
    with pytest.raises(PlanError, match="give one of them"):
        place(traces[0], "2/layer", labels=traces[0].manifest.domains, clusters=2)


def test_counts_that_cannot_be(placed: str, tmp_path: Path) -> None:
    found = load_placement(placed)
    for counts in ({"0": [1] * 7}, {"9": [1] * 8}, {"0": [-1] * 8}):
        wrong = msgspec.structs.replace(found.domains["code"], counts=counts)
        save_placement(msgspec.structs.replace(found, domains=found.domains | {"code": wrong}), tmp_path / "w.toml")
        plan = Plan("3/layer", placement={"pinned": str(tmp_path / "w.toml"), "detect": 4})
        with pytest.raises(PlanError, match="a count of each expert of a MoE layer"):
            cache_spec([EXPERTS] * LAYERS, [], plan)

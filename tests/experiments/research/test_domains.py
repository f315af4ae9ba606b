"""The experiment on domains, on small made routing: domains that differ show, labels that are noise do not."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from experiments.research.domains import BASE, Found, against, contest, cost, hits, keep, kept, tables
from experiments.statistics.comparison import compare, judge
from tests.helpers.traces import domain_trace
from tracekit.batched import batched
from tracekit.errors import PlanError
from tracekit.trace import Trace


def pair(folder: Path, apart: float) -> tuple[Trace, Trace]:
    """What placements are made from, and what judges them."""
    return tuple(domain_trace(folder / f"{seed}.trace", seed, requests=24, apart=apart) for seed in (1, 2))  # type: ignore[return-value]


def gain(found: Mapping[str, Found], name: str, other: str) -> float:
    """Points of the hit ratio that one way has over another, 0 where that may be chance."""
    one, two = found[name], found[other]
    (judged,) = judge([compare((name, one.misses), (other, two.misses), "hit ratio", lookups=one.lookups)])
    return judged.effect if judged.outcome in ("better", "worse") else 0.0


def test_domains_that_differ_show_and_noise_does_not(tmp_path: Path) -> None:
    profile, test = pair(tmp_path, 1.5)
    found = contest(profile, test, 4)
    label, pooled = "all pinned by domain, label", "all pinned"
    assert gain(found, label, pooled) > 0.03
    assert gain(found, label, BASE) > 0
    assert gain(found, "LRU beside a quarter pinned, labels shuffled", "LRU beside a quarter pinned") <= 0
    assert found[label].switched > 0 and found[pooled].switched == 0
    # Labels that say nothing of the routing: those of the judges at random, as the others' are where they are shuffled.
    noise = np.random.default_rng(5).permutation(test.manifest.domains).tolist()
    shuffled = [
        trace.with_manifest(msgspec.structs.replace(trace.manifest, domains=labels))
        for trace, labels in ((profile, np.random.default_rng(6).permutation(noise).tolist()), (test, noise))
    ]
    found = contest(*shuffled, 4)
    assert gain(found, label, pooled) <= 0
    assert gain(found, "LRU beside a quarter pinned by domain, label", "LRU beside a quarter pinned") <= 0


def test_costs_add_up_whatever_shares_a_step(tmp_path: Path) -> None:
    _, test = pair(tmp_path, 1.5)
    from engine.plan.plan import Plan

    for trace in (test, batched(test, 4)):
        one = cost(trace, Plan("4/layer", weights="bf16"), "mixtral-8x7b")
        assert one.tokens.sum() == pytest.approx(trace.tokens)
        assert one.ns.shape[1] == len(one.misses) == 24
        assert one.misses.sum() == pytest.approx(one.copies.sum())
        assert (one.ns.sum(axis=1) > 0).all()


def test_what_was_found_is_kept_and_tabled(tmp_path: Path) -> None:
    profile, test = pair(tmp_path, 1.0)
    found = contest(profile, test, 3)
    keep(found, tmp_path / "kept.npz")
    again = kept(tmp_path / "kept.npz")
    assert list(again) == list(found)
    for name, own in found.items():
        for one, other in zip(own, again[name], strict=True):
            np.testing.assert_array_equal(one, other)
    rows = against({3: found, 4: found}, lambda own: [(name, BASE) for name in own if name != BASE], hits)
    assert len(rows) == len(found) - 1 and all(len(row) == 3 for row in rows)
    assert "copies a token" in tables({3: found})


def test_no_request_judges_what_it_made(tmp_path: Path) -> None:
    profile, _ = pair(tmp_path, 1.0)
    with pytest.raises(PlanError, match="no evidence"):
        contest(profile, profile, 4)

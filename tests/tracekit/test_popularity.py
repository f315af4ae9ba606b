"""Counts of experts, from a trace or from an engine's own file, as a profile of `static`."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from engine.replay.replay import replay
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import TracekitError
from tracekit.popularity import popularity, read_counts

EXPERTS = random_experts(np.random.default_rng(1), 50, 2, 6, 2)


def plain_counts() -> np.ndarray:
    found = np.zeros((2, 6))
    for rows in EXPERTS.tolist():
        for layer, ids in enumerate(rows):
            for expert in ids:
                found[layer, expert] += 1
    return found


def counts_file(tmp_path: Path, counts: object, key: str = "logical_count") -> Path:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({key: counts, "rank": 0}))
    return path


def test_a_trace_and_its_counts_are_the_same_profile(tmp_path: Path) -> None:
    """Dense layers count nothing, and counts of several passes are added up."""
    trace = make_trace(tmp_path / "a.trace", EXPERTS, num_experts=6, expert_bytes=[10, 10])
    counts = plain_counts()
    np.testing.assert_array_equal(popularity(trace.path, [6, 6]), counts)
    dense = np.insert(counts, 0, 0, axis=0)
    passes = np.stack([dense // 2, dense - dense // 2])
    for shape in (counts, dense, passes):
        np.testing.assert_array_equal(popularity(counts_file(tmp_path, shape.tolist()), [6, 6]), counts)
    found = [
        replay(
            trace,
            {"cache": {"capacity": "3/layer"}, "eviction": {"policy": "static", "profile": str(profile)}},
            bounds=False,
        )
        for profile in (trace.path, tmp_path / "counts.json")
    ]
    assert found[0].hits == found[1].hits == int(np.sort(counts, axis=1)[:, 3:].sum())


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([[1, 2], [3]], "is not counts"),
        ([[1, -2]], "is not counts"),
        ([], "is not counts"),
        ("many", "holds no counts of experts"),
        ([[1, 2, 3]], "of a model with other MoE layers or experts"),
        ([[1] * 7, [1] * 7], "of a model with other MoE layers or experts"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, counts: object, words: str) -> None:
    with pytest.raises(TracekitError, match=words):
        popularity(counts_file(tmp_path, counts), [6, 6])


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(TracekitError, match=r"counts\.json holds no counts of experts.* missing required field"):
        read_counts(counts_file(tmp_path, [[1]], key="physical_to_logical_map"))
    (tmp_path / "counts.pt").write_bytes(pickle.dumps({"logical_count": [[1]]}))
    with pytest.raises(TracekitError, match="is a pickle"):
        read_counts(tmp_path / "counts.pt")
    with pytest.raises(TracekitError, match="none"):
        popularity(tmp_path / "none", [6])


def test_soft_counts_are_what_tokens_gave(tmp_path: Path) -> None:
    given = np.random.default_rng(2).random(EXPERTS.shape).astype(np.float16)
    trace = make_trace(tmp_path / "a.trace", EXPERTS, num_experts=6, weights=given)
    found = np.zeros((2, 6))
    for place, expert in np.ndenumerate(EXPERTS):
        found[place[1], expert] += float(given[place])
    np.testing.assert_array_equal(popularity(trace.path, [6, 6], soft=True), found)
    np.testing.assert_array_equal(popularity(trace.path, [6, 6]), plain_counts())
    bare = make_trace(tmp_path / "b.trace", EXPERTS, num_experts=6)
    np.testing.assert_array_equal(popularity(bare.path, [6, 6], soft=True), plain_counts())
    counts = counts_file(tmp_path, plain_counts().tolist())
    np.testing.assert_array_equal(popularity(counts, [6, 6], soft=True), plain_counts())

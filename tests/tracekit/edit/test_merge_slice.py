"""Merging and slicing: every array comes along, numbers stay in order, and what does not fit is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.traces import flip, make_manifest, make_trace, random_experts
from tracekit.edit import Selection, merge, pieces, slice_trace
from tracekit.errors import TraceError
from tracekit.manifest import ModelInfo
from tracekit.rows import DECODE
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

ARRAYS = ("position", "phase", "token_id", "experts", "weights", "logits")


def full(path: Path, seed: int = 0, tokens: int = 30, requests: int = 3, **fields: Any) -> Trace:
    """A trace with everything in it, of several requests that go through the model together."""
    rng = np.random.default_rng(seed)
    return make_trace(
        path,
        random_experts(rng, tokens, 3, 8, 2),
        num_experts=8,
        step=5 + np.arange(tokens) // 2,
        request=4 + rng.integers(0, requests, tokens),
        phase=(np.arange(tokens) % 7 != 0).astype(int),
        token_id=rng.integers(0, 99, tokens),
        weights=rng.random((tokens, 3, 2)),
        logits=np.where(rng.random((tokens, 3, 8)) < 0.1, -np.inf, 1.0),
        lookahead={1: rng.normal(size=(tokens, 2, 8)), 2: rng.normal(size=(tokens, 1, 8))},
        **{"source": "record", "expert_bytes": [10, 20, 30]} | fields,
    )


def same_rows(one: Trace, rows: np.ndarray, other: Trace, others: slice) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[others], name)
    for distance in (1, 2):
        mine, its = one.lookahead(distance), other.lookahead(distance)
        assert mine is not None and its is not None
        np.testing.assert_array_equal(mine[rows], its[others])


@pytest.mark.parametrize("piece_bytes", [1, 2000, 1 << 26])
def test_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(pieces, "_PIECE_BYTES", piece_bytes)
    one, other = full(tmp_path / "a.trace"), full(tmp_path / "b.trace", seed=1, tokens=20)
    done: list[int] = []
    merged = merge([one, other, one], tmp_path / "c.trace", progress=done.append)
    assert sum(done) == merged.tokens == 80 and merged.manifest.complete
    assert Trace.open(merged.path, verify=True).digest == merged.digest
    starts = [0, 30, 50, 80]
    for trace, first, last in zip((one, other, one), starts, starts[1:], strict=False):
        same_rows(trace, np.arange(trace.tokens), merged, slice(first, last))
        for name in ("step", "request"):
            mine, its = getattr(trace, name), getattr(merged, name)[first:last]
            np.testing.assert_array_equal(its - its.min(), mine - mine.min())
    edges = [(starts[i], starts[i + 1]) for i in range(3)]
    for before, after in pairwise(edges):
        assert merged.step[after[0]] == merged.step[before[1] - 1] + 1
        assert merged.request[slice(*after)].min() == merged.request[slice(*before)].max() + 1
    manifest = merged.manifest
    assert (manifest.source, manifest.model, manifest.expert_bytes) == ("record", one.manifest.model, [10, 20, 30])
    assert manifest.notes[0] == "merged from 3 traces, 2 of them different"
    assert "part 1: b.trace, 20 tokens" in manifest.notes[2]


def test_merged_sources(tmp_path: Path) -> None:
    """A part that is synthetic makes the whole synthetic; a part that is incomplete is named."""
    recorded, other = full(tmp_path / "a.trace"), full(tmp_path / "b.trace", source="import:npz", seed=3)
    assert merge([recorded, other], tmp_path / "c.trace").manifest.source == "merge"
    made = full(tmp_path / "d.trace", source="synthetic", seed=None)
    assert merge([recorded, made], tmp_path / "e.trace").manifest.source == "synthetic"
    writer = TraceWriter(tmp_path / "f.trace", make_manifest(3, source="record", expert_bytes=[10, 20, 30]))
    writer.close()
    empty = merge([recorded, Trace.open(tmp_path / "f.trace")], tmp_path / "g.trace")
    assert empty.tokens == 30 and any("part 1: incomplete" in note for note in empty.manifest.notes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ModelInfo(id="other/model", family="test")}, "model.id differ (test/tiny and other/model)"),
        ({"model": ModelInfo(id="test/tiny", family="test", revision="b")}, "model.revision"),
        ({"expert_bytes": [1, 2, 3]}, "expert_bytes differ"),
        ({"moe_layers": [0, 1, 3], "model_layers": 4}, "moe_layers differ"),
        ({"score_function": "sigmoid"}, "score_function differ"),
    ],
)
def test_merge_refuses(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    one, other = full(tmp_path / "a.trace"), full(tmp_path / "b.trace", **fields)
    with pytest.raises(TraceError) as error:
        merge([one, other], tmp_path / "c.trace")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.trace", "b.trace"]


def test_merge_refuses_other_arrays_and_outputs(tmp_path: Path) -> None:
    one = full(tmp_path / "a.trace")
    bare = make_trace(tmp_path / "b.trace", one.experts, num_experts=8, source="record", expert_bytes=[10, 20, 30])
    for traces, output, words in (
        ([one, bare], "c.trace", "recorded arrays differ"),
        ([one], "c.trace", "two traces or more"),
        ([one, one], "b.trace", "b.trace exists"),
        ([one, one], "none/c.trace", "no directory"),
    ):
        with pytest.raises(TraceError, match=words):
            merge(traces, tmp_path / output)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.trace", "b.trace"]


def test_a_damaged_part_leaves_nothing(tmp_path: Path) -> None:
    one, other = full(tmp_path / "a.trace"), full(tmp_path / "b.trace", seed=1)
    (shard,) = other.path.glob("routing-*.parquet")
    flip(shard)
    with pytest.raises(TraceError, match=r"b\.trace"):
        merge([one, other], tmp_path / "c.trace")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.trace", "b.trace"]


@pytest.mark.parametrize("kind", ["logits", "lookahead-2"])
def test_damage_is_not_copied_to_where_it_looks_sound(tmp_path: Path, kind: str) -> None:
    """Logits and lookahead stay undigested where they are only looked at; a copy would have a digest that agrees."""
    trace = full(tmp_path / "a.trace")
    (shard,) = trace.path.glob(f"{kind}-*.safetensors")
    flip(shard, -1)
    damaged = Trace.open(trace.path)
    for write in (
        lambda: merge([damaged, damaged], tmp_path / "c.trace"),
        lambda: slice_trace(damaged, Selection(steps="5:6"), tmp_path / "c.trace"),
    ):
        with pytest.raises(TraceError, match=rf"{kind}-00000\.safetensors is truncated or damaged"):
            write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.trace"]


@given(
    st.sampled_from([None, "4:5", "5:", ":6", "0:100"]),
    st.sampled_from([None, "5:9", ":7", "10:", "0:99"]),
    st.sampled_from([None, "prefill", "decode"]),
    st.integers(1, 5000),
)
@settings(max_examples=30, deadline=None)
def test_slice(
    tmp_path_factory: pytest.TempPathFactory,
    requests: str | None,
    steps: str | None,
    phase: str | None,
    piece_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("slice")
    trace = full(folder / "a.trace")

    def within(text: str | None, column: np.ndarray) -> np.ndarray:
        low, _, high = (text or ":").partition(":")
        return (column >= int(low or 0)) & (column < int(high or 10**9))

    keep = within(requests, trace.request) & within(steps, trace.step)
    if phase is not None:
        keep &= (trace.phase == DECODE) == (phase == "decode")
    selection = Selection(requests, steps, phase)
    if requests is steps is phase is None or not keep.any():
        with pytest.raises(TraceError, match=r"nothing to slice by|has no rows of"):
            slice_trace(trace, selection, folder / "b.trace")
        assert [entry.name for entry in folder.iterdir()] == ["a.trace"]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE_BYTES", piece_bytes)
        part = slice_trace(trace, selection, folder / "b.trace")
    same_rows(trace, keep, part, slice(None))
    for name in ("step", "request"):
        np.testing.assert_array_equal(getattr(part, name), getattr(trace, name)[keep])
    assert str(selection) in part.manifest.notes[-1] and part.manifest.complete
    assert Trace.open(part.path, verify=True).tokens == keep.sum()


def test_slices_merge_to_the_whole(tmp_path: Path) -> None:
    trace = full(tmp_path / "a.trace", requests=1)
    halves = [slice_trace(trace, Selection(steps=text), tmp_path / f"{text[0]}.trace") for text in (":12", "12:")]
    whole = merge(halves, tmp_path / "whole.trace")
    same_rows(trace, np.arange(30), whole, slice(None))


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(requests="a"), "--requests is 'a', expected FIRST:END"),
        (Selection(requests=":"), "--requests is ':'"),
        (Selection(steps="7:3"), "nothing lies from 7 to before 3"),
        (Selection(steps="9" * 99), "--steps is"),
        (Selection(phase="decod"), "did you mean 'decode'"),
        (Selection(requests="90:99"), "it has requests 4:7, steps 5:20"),
    ],
)
def test_slice_refuses(tmp_path: Path, selection: Selection, words: str) -> None:
    trace = full(tmp_path / "a.trace")
    with pytest.raises(TraceError) as error:
        slice_trace(trace, selection, tmp_path / "b.trace")
    assert words in str(error.value)


def test_incomplete_slices_say_so(tmp_path: Path) -> None:
    trace = full(tmp_path / "a.trace")
    manifest = tmp_path / "a.trace" / "manifest.json"
    manifest.write_bytes(msgspec.structs.replace(trace.manifest, complete=False).encode())
    part = slice_trace(Trace.open(trace.path), Selection(phase="decode"), tmp_path / "b.trace")
    assert part.manifest.notes[-1] == "sliced from an incomplete recording"

"""The npz importer: a few arrays from anyone's engine, and everything that must not pass for them."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import arrays, import_trace
from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

EXPERTS = random_experts(np.random.default_rng(3), 6, 2, 8, 2).astype(np.int64)


def bring(tmp_path: Path, **arrays: Any) -> Trace:
    np.savez_compressed(tmp_path / "routing.npz", **arrays)
    return import_trace("npz", tmp_path / "routing.npz", tmp_path / "a.trace")


def refusal(tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "routing.npz", **arrays)
    return refusal_of_file(tmp_path)


def refusal_of_file(tmp_path: Path) -> str:
    with pytest.raises(ImportFormatError) as error:
        import_trace("npz", tmp_path / "routing.npz", tmp_path / "a.trace")
    message = str(error.value)
    assert "routing.npz" in message and "\n" not in message and len(message) < 500
    assert [entry.name for entry in tmp_path.iterdir()] == ["routing.npz"]
    return message


def test_experts_alone_are_enough(tmp_path: Path) -> None:
    trace = bring(tmp_path, experts=EXPERTS)
    np.testing.assert_array_equal(trace.experts, EXPERTS)
    assert trace.step.tolist() == trace.position.tolist() == list(range(6))
    assert set(trace.request.tolist()) == {0} and set(trace.phase.tolist()) == {DECODE}
    assert set(trace.token_id.tolist()) == {-1}
    assert trace.weights is None
    manifest = trace.manifest
    assert (manifest.source, manifest.model.id, manifest.complete) == ("import:npz", "routing", True)
    assert manifest.experts_per_layer == [int(EXPERTS.max()) + 1] * 2
    assert manifest.expert_bytes == [] and "largest id" in manifest.notes[0]


def test_everything_given(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random(EXPERTS.shape)
    trace = bring(
        tmp_path,
        experts=EXPERTS.astype(np.uint8),
        weights=weights,
        request=[0, 1, 0, 1, 0, 1],
        step=[0, 0, 1, 1, 2, 2],
        position=[5, 6, 7, 8, 9, 10],
        phase=[False, False, True, True, True, True],
        token_id=[9, 8, 7, 6, 5, 4],
        expert_bytes=[100, 200],
        experts_per_layer=16,
    )
    assert trace.manifest.experts_per_layer == [16, 16]
    assert trace.manifest.expert_bytes == [100, 200]
    assert trace.manifest.notes == []
    assert (trace.manifest.steps, trace.manifest.requests) == (3, 2)
    assert trace.phase.tolist() == [0, 0, 1, 1, 1, 1]
    assert trace.position.tolist() == [5, 6, 7, 8, 9, 10]
    assert trace.token_id.tolist() == [9, 8, 7, 6, 5, 4]
    np.testing.assert_array_equal(trace.weights, weights.astype(np.float16))


def test_positions_are_counted_within_requests(tmp_path: Path) -> None:
    trace = bring(tmp_path, experts=EXPERTS, request=[4, 2, 2, 4, 4, 0])
    assert trace.position.tolist() == [0, 0, 1, 1, 2, 0]


def test_unused_slots(tmp_path: Path) -> None:
    experts = EXPERTS.copy()
    experts[0, 0] = UNUSED
    trace = bring(tmp_path, experts=experts)
    np.testing.assert_array_equal(trace.experts, experts)
    assert trace.num_experts == int(EXPERTS.max()) + 1


def test_a_published_json_trace_through_arrays(shared_data: Path, tmp_path: Path) -> None:
    """switch-base-8: 215 tokens of 10 prompts through 6 MoE layers, 1,290 lookups."""
    document = json.loads((shared_data / "switch-base-8" / "router-trace.v2.json").read_text())
    trace = bring(tmp_path, experts=np.array(document["selections"]), experts_per_layer=8)
    assert (trace.tokens, trace.layers, trace.top_k) == (215, 6, 1)
    assert trace.experts.size == 1290


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "has no array 'experts'"),
        ({"experts": EXPERTS, "wieghts": EXPERTS}, "did you mean 'weights'"),
        ({"experts": EXPERTS[0]}, "expected integers [tokens, layers, k]"),
        ({"experts": EXPERTS[:0]}, "expected integers [tokens, layers, k]"),
        ({"experts": EXPERTS.astype(float)}, "expected integers [tokens, layers, k]"),
        ({"experts": EXPERTS > 3}, "experts is bool"),
        ({"experts": EXPERTS - 9}, "out of range"),
        ({"experts": EXPERTS + 2**40}, "ids must be below"),
        ({"experts": EXPERTS, "experts_per_layer": 4}, "of 4"),
        ({"experts": EXPERTS, "experts_per_layer": [8, 8, 8]}, "expected one integer or [2]"),
        ({"experts": EXPERTS, "experts_per_layer": 2**40}, "experts_per_layer is"),
        ({"experts": EXPERTS, "experts_per_layer": -1}, "experts_per_layer is -1"),
        ({"experts": EXPERTS, "expert_bytes": 0}, "expert_bytes is 0"),
        ({"experts": EXPERTS, "expert_bytes": 1.5}, "expected one integer"),
        ({"experts": np.zeros((3, 2, 2), dtype=int)}, "listed twice"),
        ({"experts": np.zeros((1, 5000, 1), dtype=int)}, "too many for a model"),
        ({"experts": np.zeros((1, 1, 5000), dtype=int)}, "too many for a model"),
        ({"experts": EXPERTS, "weights": np.full(EXPERTS.shape, np.nan)}, "not finite"),
        ({"experts": EXPERTS, "weights": np.full(EXPERTS.shape, np.inf)}, "not finite"),
        ({"experts": EXPERTS, "weights": np.zeros((6, 2, 3))}, "expected floats [6, 2, 2]"),
        ({"experts": EXPERTS, "weights": EXPERTS}, "expected floats"),
        ({"experts": EXPERTS, "step": [0, 1, 2, 1, 3, 4]}, "row 3: step 1"),
        ({"experts": EXPERTS, "step": [0, 1]}, "step has shape [2]"),
        ({"experts": EXPERTS, "step": [0.0] * 6}, "expected integers"),
        ({"experts": EXPERTS, "request": [[0] * 6]}, "request has shape"),
        ({"experts": EXPERTS, "request": [-1] * 6}, "request -1"),
        ({"experts": EXPERTS, "request": [2**62] * 6}, "out of range"),
        ({"experts": EXPERTS, "phase": [7] * 6}, "phase 7"),
        ({"experts": EXPERTS, "phase": ["decode"] * 6}, "expected numbers"),
        ({"experts": EXPERTS, "position": [-1] * 6}, "position -1"),
        ({"experts": EXPERTS, "token_id": [-2] * 6}, "token_id -2"),
        ({"experts": EXPERTS.astype(complex)}, "expected numbers"),
        ({"experts": EXPERTS.astype("datetime64[s]")}, "expected numbers"),
    ],
)
def test_arrays_that_are_no_routing(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, **arrays)


class Bomb:
    """Unpickling this would leave a file behind."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("pickle-was-run", "w")


def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path, experts=np.array([[[Bomb()]]], dtype=object))
    assert "holds object, expected numbers" in message  # and `refusal` saw that nothing lies in the folder


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (b"", "is not a readable .npz"),
        (b"\x93NUMPY", "is not a readable .npz"),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999, 48, 8), }"), "claims shape"),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-4, 1, 2), }", bytes(64)), "claims shape"),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (4, 1, 2), }", bytes(8)), "claims shape"),
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1), }", b"cos\nsystem\n"),
            "holds object",
        ),
        (
            npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1, 1, 1), }", bytes(8)),
            "expected numb",
        ),
        (npy("__import__('os').system('true')"), "is not a readable .npz"),
        (npy("{'descr': '<i8'" + "[" * 4000), "is not a readable .npz"),
        (npy("{}", version=b"\x09\x00"), "version (9, 0)"),
    ],
)
def test_hostile_members(tmp_path: Path, member: bytes, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "routing.npz", "w") as archive:
        archive.writestr("experts.npy", member)
    assert words in refusal_of_file(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"\x93NUMPY\x01\x00", b"x" * 5000])
def test_what_is_no_zip_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "routing.npz").write_bytes(data)
    assert "is not a readable .npz file" in refusal_of_file(tmp_path)


def test_truncated_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, experts=EXPERTS)
    for size in range(0, len(buffer.getvalue()) - 1, 37):
        (tmp_path / "routing.npz").write_bytes(buffer.getvalue()[:size])
        assert "is not a readable .npz file" in refusal_of_file(tmp_path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros shrink a thousandfold, as no routing does; small arrays of them (a constant column) may."""
    monkeypatch.setattr(arrays, "BOMB_BYTES", 1 << 20)
    header = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000, 1, 1), }")
    with zipfile.ZipFile(tmp_path / "routing.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("experts.npy", header + bytes(8_000_000))
    assert "refused as too large" in refusal_of_file(tmp_path)


def test_the_same_array_twice(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, EXPERTS)
    with zipfile.ZipFile(tmp_path / "routing.npz", "w") as archive:
        archive.writestr("experts.npy", buffer.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("experts.npy", buffer.getvalue())
    assert "holds the same array twice" in refusal_of_file(tmp_path)

"""Whatever stands where a trace should be, opening it gives a trace or one line of TraceError."""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from tests.helpers.traces import flip, make_trace, random_experts
from tracekit import shards
from tracekit.errors import TraceError
from tracekit.trace import Trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    trace = make_trace(
        tmp_path / "a.trace",
        random_experts(rng, 20),
        weights=rng.random((20, 2, 2)),
        logits=rng.normal(size=(20, 2, 8)),
    )
    return trace.path


def refusal(path: Path, *, verify: bool = False) -> str:
    with pytest.raises(TraceError) as error:
        _ = Trace.open(path, verify=verify).experts
    message = str(error.value)
    assert "\n" not in message and path.name in message
    return message


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def edit_shard(path: Path, number: int, **changes: Any) -> None:
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    shards[number] |= changes
    edit(path, shards=shards)


def forge(path: Path, number: int, data: bytes) -> None:
    """Replace a shard and make the manifest agree, as someone with bad intentions would."""
    shard = json.loads((path / "manifest.json").read_text())["shards"][number]
    (path / shard["name"]).write_bytes(data)
    edit_shard(path, number, sha256=hashlib.sha256(data).hexdigest())


def test_what_is_no_trace(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.trace")
    (tmp_path / "file.trace").write_text("hello")
    assert "is not a trace: a trace is a directory" in refusal(tmp_path / "file.trace")
    (tmp_path / "empty.trace").mkdir()
    assert "has no manifest.json" in refusal(tmp_path / "empty.trace")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b'{"schema_version": "1"}',
        b"[" * 100_000,
        b'{"schema_version":1}',
    ],
)
def test_a_manifest_that_is_none(path: Path, data: bytes) -> None:
    (path / "manifest.json").write_bytes(data)
    assert "is not a valid trace manifest" in refusal(path)


def test_another_version_says_so(path: Path) -> None:
    """Also when the rest of the manifest has changed beyond recognition."""
    (path / "manifest.json").write_text('{"schema_version": 2, "brave": "new"}')
    assert "has schema_version 2, this release reads 1" in refusal(path)


def test_an_unknown_field_is_refused(path: Path) -> None:
    edit(path, colour="green")
    assert "unknown field `colour`" in refusal(path)


def test_a_huge_manifest_is_not_read(path: Path) -> None:
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file: costs nothing on disk
    assert "larger than 64 MiB" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_do_not_block(path: Path) -> None:
    (path / "routing-00000.parquet").unlink()
    os.mkfifo(path / "routing-00000.parquet")
    assert "it is a pipe, not a file" in refusal(path)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    assert "it is a pipe, not a file" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 9}, "top_k is 9"),
        ({"top_k": 10**9}, "top_k is 1000000000"),
        ({"top_k": 10**40}, "not a valid trace manifest"),
        ({"top_k": 3}, "does not hold the columns"),
        ({"tokens": 19}, "tokens is 19"),
        ({"tokens": -1}, "tokens is -1"),
        ({"tokens": 10**15}, "tokens is 1000000000000000"),
        ({"steps": 7}, "holds 20 steps"),
        ({"requests": 7}, "holds 1 requests"),
        ({"moe_layers": [], "experts_per_layer": []}, "number of MoE layers is 0"),
        ({"moe_layers": [1, 0]}, "moe_layers must increase"),
        ({"moe_layers": [0, 5]}, "moe_layers is 5"),
        ({"moe_layers": [0]}, "experts_per_layer has 2 entries"),
        ({"moe_layers": list(range(5000))}, "number of MoE layers is 5000"),
        ({"experts_per_layer": [8, 65536]}, "experts_per_layer is 65536"),
        ({"experts_per_layer": [8, 0]}, "experts_per_layer is 0"),
        ({"experts_per_layer": [4, 8]}, "of 4"),
        ({"expert_bytes": [1]}, "expert_bytes has 1 entries"),
        ({"expert_bytes": [1, -1]}, "expert_bytes is -1"),
        ({"expert_bytes": [1, 2**60]}, "expert_bytes is"),
        ({"expert_params": [0, 0]}, "expert_params is 0"),
        ({"shards": []}, "routing shards hold 0 rows"),
    ],
)
def test_numbers_that_cannot_be(path: Path, changes: dict[str, Any], words: str) -> None:
    edit(path, **changes)
    assert words in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "../routing-00000.parquet",
        "/etc/passwd",
        "routing-00000.parquet/../../x",
        "C:\\routing-00000.parquet",
        "routing-00000.parquet\0",
        "logits-00000.safetensors",
        "routing-\u0660\u0660\u0660\u0660\u0660.parquet",
        "",
    ],
)
def test_shard_names_stay_in_the_directory(path: Path, name: str) -> None:
    edit_shard(path, 0, name=name)
    assert "is not the name of a shard" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 19}, "19"),
        ({"rows": 2**31 - 1}, str(2**31 - 1)),
        ({"rows": 0}, "rows of"),
        ({"rows": -20}, "rows of"),
        ({"kind": "hidden"}, "is not the name of a shard"),
        ({"kind": "lookahead-0"}, "is not the name of a shard"),
        ({"sha256": "abc"}, "sha256 must be"),
        ({"sha256": "0" * 64}, "truncated or damaged"),
    ],
)
def test_shards_that_cannot_be(path: Path, changes: dict[str, Any], words: str) -> None:
    edit_shard(path, 0, **changes)
    assert words in refusal(path)


def test_a_trace_larger_than_memory_is_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest agrees with itself, and asks for 34 GiB before any expert is read."""
    monkeypatch.setattr(shards, "installed_memory", lambda: 1 << 33)
    manifest = json.loads((path / "manifest.json").read_text())
    rows, layers = 2**31 - 1, 1000
    listed = [manifest["shards"][0] | {"rows": rows}]
    model = {"moe_layers": list(range(layers)), "model_layers": layers, "experts_per_layer": [8] * layers}
    edit(path, tokens=rows, shards=listed, **model)
    assert "GiB of routing, this machine has" in refusal(path)


def test_routing_larger_than_memory_is_read_in_pieces_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "installed_memory", lambda: 400)
    trace = Trace.open(path)
    assert trace.experts_of(3, 5).shape == (2, 2, 2)
    with pytest.raises(TraceError, match="of routing, this machine has"):
        _ = trace.experts


def test_rows_and_files_must_agree(path: Path) -> None:
    """A manifest that agrees with itself about a number of rows that the file does not have."""
    manifest = json.loads((path / "manifest.json").read_text())
    edit(path, tokens=10**6, shards=[shard | {"rows": 10**6} for shard in manifest["shards"]])
    assert "holds 20 rows, the manifest says 1000000" in refusal(path)


def test_a_shard_listed_twice(path: Path) -> None:
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    edit(path, tokens=40, shards=[shards[0], shards[0], shards[1]])
    assert "listed twice" in refusal(path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_shard(path: Path, number: int) -> None:
    name = Trace.open(path).manifest.shards[number].name
    (path / name).unlink()
    assert f"{name} is missing" in refusal(path)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 7, 100, -1])
def test_a_truncated_shard(path: Path, number: int, size: int) -> None:
    file = path / Trace.open(path).manifest.shards[number].name
    file.write_bytes(file.read_bytes()[:size])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_flipped_byte_anywhere(path: Path, number: int) -> None:
    file = path / Trace.open(path).manifest.shards[number].name
    for at in range(0, file.stat().st_size, 97):
        flip(file, at, 0x10)
        assert file.name in refusal(path, verify=True)
        flip(file, at, 0x10)
    Trace.open(path, verify=True)


def test_a_shard_is_digested_before_it_is_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over some flipped bytes the decoder aborts the process; over others it gives columns that nobody recorded, and
    a slice or a comparison may look at no more of a shard than its columns."""
    file = path / "routing-00000.parquet"
    flip(file, bit=0x10)
    monkeypatch.setattr(shards, "read_columns", lambda *arguments: pytest.fail("a damaged shard was decoded"))
    with pytest.raises(TraceError, match=rf"{file.name} is truncated or damaged"):
        Trace.open(path)


def table(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> bytes:
    changed = path / "changed"
    change(pl.read_parquet(path / "routing-00000.parquet")).write_parquet(changed)
    data = changed.read_bytes()
    changed.unlink()
    return data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop("token_id"), "does not hold the columns"),
        (lambda frame: frame.with_columns(extra=pl.lit(1)), "does not hold the columns"),
        (lambda frame: frame.with_columns(pl.col("step").cast(pl.Int64)), "does not hold the columns"),
        (lambda frame: frame.select(pl.exclude("experts"), "experts"), "does not hold the columns"),
        (lambda frame: frame.head(19), "holds 19 rows"),
        (lambda frame: frame.reverse(), "row 1: step 18"),
        (lambda frame: frame.with_columns(step=pl.lit(-1, pl.Int32)), "step -1"),
        (lambda frame: frame.with_columns(step=pl.lit(None, pl.Int32)), "has holes"),
        (lambda frame: frame.with_columns(phase=pl.lit(2, pl.UInt8)), "phase 2"),
        (lambda frame: frame.with_columns(position=pl.lit(-3, pl.Int32)), "position -3"),
        (lambda frame: frame.with_columns(experts=pl.lit([9] * 4, pl.Array(pl.UInt16, 4))), "expert 9 of 8"),
        (lambda frame: frame.with_columns(experts=pl.lit([1] * 4, pl.Array(pl.UInt16, 4))), "listed twice"),
        (lambda frame: frame.with_columns(experts=pl.lit([None] * 4, pl.Array(pl.UInt16, 4))), "has holes"),
        (
            lambda frame: frame.with_columns(weights=pl.lit([np.nan] * 4, pl.Array(pl.Float16, 4))),
            "nan is not",
        ),
    ],
)
def test_forged_routing(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], words: str) -> None:
    forge(path, 0, table(path, change))
    assert words in refusal(path, verify=True)


def test_weights_are_checked_when_they_are_read(path: Path) -> None:
    nan = pl.lit([np.nan] * 4, pl.Array(pl.Float16, 4))
    forge(path, 0, table(path, lambda frame: frame.with_columns(weights=nan)))
    trace = Trace.open(path)
    with pytest.raises(TraceError, match="not finite"):
        _ = trace.weights


@pytest.mark.parametrize(
    "header",
    [
        {"logits": {"dtype": "F32", "shape": [20, 2, 8], "data_offsets": [0, 640]}},
        {"logits": {"dtype": "F16", "shape": [20, 2, 9], "data_offsets": [0, 640]}},
        {"logits": {"dtype": "F16", "shape": [20, 2, 8], "data_offsets": [8, 648]}},
        {"logits": {"dtype": "F16", "shape": [20, 2, 8], "data_offsets": [0, 10**18]}},
        {"logits": {"dtype": "F16", "shape": [-20, -2, 8], "data_offsets": [0, 640]}},
        {"other": {"dtype": "F16", "shape": [20, 2, 8], "data_offsets": [0, 640]}},
        {"logits": "text"},
        [],
    ],
)
def test_forged_logits(path: Path, header: object) -> None:
    text = msgspec.json.encode(header)
    forge(path, 1, len(text).to_bytes(8, "little") + text + bytes(640))
    assert "logits-00000.safetensors" in refusal(path)


def test_a_header_that_claims_the_address_space(path: Path) -> None:
    forge(path, 1, b"\xff" * 8 + bytes(640))
    assert "is not a safetensors file" in refusal(path)


def test_random_damage_is_never_anything_but_a_trace_error(path: Path) -> None:
    """Digests made to agree, so that the parsers themselves are tried."""
    rng = random.Random(7)
    whole = (path / "routing-00000.parquet").read_bytes()
    text = (path / "manifest.json").read_bytes()
    opened = 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        forge(path, 0, bytes(data))
        opened += opens(path)
    for _ in range(60):
        damaged = bytearray(text)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (path / "manifest.json").write_bytes(damaged)
        opened += opens(path)
    assert opened < 120


def opens(path: Path) -> bool:
    try:
        Trace.open(path, verify=True)
    except TraceError as error:
        assert "\n" not in str(error)
        return False
    return True

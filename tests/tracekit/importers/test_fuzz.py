"""Whatever the bytes, an importer gives a trace that opens and verifies, or one line; in bounded memory."""

import base64
import gzip
import io
import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError, TraceError
from tracekit.importers import IMPORTERS, ImportOptions, import_trace
from tracekit.trace import Trace

CHOSEN = random_experts(np.random.default_rng(0), 5, 2, 8, 2)


def array_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, CHOSEN)
    else:
        np.savez_compressed(buffer, **{kind: CHOSEN.astype(np.int64)})
    return buffer.getvalue()


def response(routed: object) -> dict[str, object]:
    return {"choices": [{"routed_experts": routed}], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}


SGLANG = {
    "meta_info": {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "routed_experts": base64.b64encode(CHOSEN.astype("<i4").tobytes()).decode(),
    }
}
PAIRS = [(token, layer, CHOSEN[token, layer].tolist()) for token in range(5) for layer in range(2)]
ROUTE = """\
# route_trace v1
# model=tiny arch=tiny n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100
# layer=1 expert_bytes=100
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
""" + "".join(
    f"0,{int(token > 2)},{token},{layer},{slot},{ids[slot]},0.5,0,0\n" for token, layer, ids in PAIRS for slot in (0, 1)
)
BINARY = struct.pack("<4s2i", b"MBLT", 1, 8)
BINARY += b"".join(struct.pack("<5i", layer, 2, 1, *ids) for _, layer, ids in PAIRS)
COLUMNS = io.BytesIO()
pl.DataFrame([{"token": token, "layer": layer, "ids": ids} for token, layer, ids in PAIRS]).write_parquet(COLUMNS)
ROUTER_DATA = [
    {f"token_{token}": {f"layer_{layer}": {"selected_experts": CHOSEN[token, layer].tolist()} for layer in range(2)}}
    for token in range(5)
]
SOURCES: list[tuple[str, bytes]] = [
    ("npz", array_bytes("experts")),
    ("vllm", array_bytes("npy")),
    ("vllm", array_bytes("routed_experts")),
    ("vllm", json.dumps(response(CHOSEN.tolist())).encode()),
    ("vllm", json.dumps(response(base64.b64encode(array_bytes("npy")).decode())).encode()),
    ("sglang", json.dumps(SGLANG).encode()),
    ("jsonl", "".join(json.dumps({"token": t, "layer": n, "ids": ids}) + "\n" for t, n, ids in PAIRS).encode()),
    ("llama-csv", ("layer,expert\n" + "".join(f"{n},{e}\n" for _, n, ids in PAIRS for e in ids)).encode()),
    (
        "llama-csv",
        (
            "phase,token,layer,rank,expert\n"
            + "".join(f"decode,{t},{n},{i},{e}\n" for t, n, ids in PAIRS for i, e in enumerate(ids))
        ).encode(),
    ),
    (
        "deepseek-csv",
        (
            "Layer ID,Batch Number,Token,Activated Expert IDs\n"
            + "".join(f'{n},0,t,"{CHOSEN[t, n].tolist()}"\n' for n in range(2) for t in range(5))
        ).encode(),
    ),
    ("bigmoe-csv", ROUTE.encode()),
    ("mbolt", BINARY),
    ("parquet", COLUMNS.getvalue()),
    ("router-data", json.dumps({"router_data": ROUTER_DATA}).encode()),
    ("jsonl", gzip.compress("".join(json.dumps({"layer": n, "ids": ids}) + "\n" for _, n, ids in PAIRS).encode())),
    ("vllm", b"data: " + json.dumps(response(CHOSEN.tolist())).encode() + b"\n\ndata: [DONE]\n"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def attempt(folder: Path, format_name: str, data: bytes) -> Trace | None:
    """Import `data`; what comes of it is sound, or one line naming the file."""
    source, output = folder / "source.bin", folder / "out.trace"
    source.write_bytes(data)
    shutil.rmtree(output, ignore_errors=True)
    options = ImportOptions(experts=None) if format_name != "sglang" else ImportOptions(layers=2, top_k=2)
    try:
        import_trace(format_name, source, output, options)
    except (ImportFormatError, TraceError) as error:
        message = str(error)
        assert "source.bin" in message and "\n" not in message and len(message) < 800
        assert [entry.name for entry in folder.iterdir()] == ["source.bin"]
        return None
    return Trace.open(output, verify=True)


def test_every_format_is_here_and_sound(folder: Path) -> None:
    assert {name for name, _ in SOURCES} == set(IMPORTERS)
    for name, data in SOURCES:
        trace = attempt(folder, name, data)
        assert trace is not None, name
        np.testing.assert_array_equal(trace.experts, CHOSEN)


@pytest.mark.parametrize("number", range(len(SOURCES)))
@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes(folder: Path, number: int, data: st.DataObject) -> None:
    name, whole = SOURCES[number]
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    attempt(folder, name, bytes(changed))


@pytest.mark.parametrize("number", range(len(SOURCES)))
@given(st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_and_spliced(folder: Path, number: int, data: st.DataObject) -> None:
    name, whole = SOURCES[number]
    first, last = sorted((data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))))
    attempt(folder, name, whole[:first])
    attempt(folder, name, whole[:first] + whole[last:])
    attempt(folder, name, whole + whole[first:last])


@pytest.mark.parametrize("name", sorted(IMPORTERS))
@given(st.binary(max_size=300))
@example(b"\x00" * 100)
@example(b"\xff\xfe")
@example(b"[" * 100_000)
@example(b'{"a":' * 50_000)
@example(b"9" * 5000)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(folder: Path, name: str, data: bytes) -> None:
    attempt(folder, name, data)


LARGE = 10**11


def lying(shape: str, dtype: str = "<i2") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("vllm", lying(f"({LARGE}, 48, 8)")),
        ("vllm", lying("(0, 9999999999, 8)")),
        ("vllm", lying("(2, 2, 8)", "|O")),
        ("vllm", json.dumps(response({"data": "AAAAAA==", "shape": [LARGE, LARGE, LARGE]})).encode()),
        ("vllm", json.dumps(response({"data": "", "shape": [0, LARGE, LARGE]})).encode()),
        ("vllm", json.dumps(response({"data": "", "shape": [0, 10**30, 10**30]})).encode()),
        ("vllm", json.dumps(response([[[1, 2]], [[1, 2, 3]]])).encode()),
        ("sglang", json.dumps({"meta_info": {"routed_experts": [[[10**40]]]}}).encode()),
        ("jsonl", b'{"token": 2147483647, "layer": 0, "ids": [1]}\n{"token": 0, "layer": 4000, "ids": [1]}\n'),
        ("jsonl", b'{"token": 2147483647, "layer": 4095, "ids": [65534]}\n'),
        ("llama-csv", b"layer,expert\n0,1\n4095,65534\n0,1\n4095,3\n"),
        ("llama-csv", b"phase,token,layer,rank,expert\ndecode,2147483647,4095,0,65534\n"),
        ("deepseek-csv", b'Layer ID,Batch Number,Token,Activated Expert IDs\n4095,999999,x,"[65534]"\n'),
    ],
)
def test_lying_sizes_take_no_memory(folder: Path, name: str, data: bytes) -> None:
    attempt(folder, "npz", SOURCES[0][1])  # what is imported on first use is not what is measured
    attempt(folder, name, data)
    tracemalloc.start()
    attempt(folder, name, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20

"""Whatever the bytes, an importer gives a trace that opens and verifies, or one line; in bounded memory."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.foreign import CHOSEN, SOURCES, response
from tracekit.errors import ImportFormatError, TraceError
from tracekit.importers import IMPORTERS, ImportOptions, import_trace
from tracekit.trace import Trace


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

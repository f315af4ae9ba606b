"""`import auto`: what a file is taken for, by what it holds, and why."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import IMPORTERS, ImportOptions, import_trace

CHOSEN = random_experts(np.random.default_rng(0), 6, 2, 8, 2)
DUMP = "".join(
    json.dumps({"token": token, "layer": layer, "topk_ids": ids}) + "\n"
    for token, rows in enumerate(CHOSEN.tolist())
    for layer, ids in enumerate(rows)
).encode()
ROUTER = {
    "prompt": "x",
    "router_data": [
        {f"token_{t}": {f"layer_{n}": {"selected_experts": ids} for n, ids in enumerate(rows)}}
        for t, rows in enumerate(CHOSEN.tolist())
    ],
}
MBOLT = b"MBLT" + struct.pack("<2i", 1, 8)
MBOLT += b"".join(struct.pack("<5i", n, 2, 1, *ids) for rows in CHOSEN.tolist() for n, ids in enumerate(rows))
DEEPSEEK = "Layer ID,Batch Number,Token,Activated Expert IDs\n" + "".join(
    f'{layer},0,t{token},"{ids}"\n' for layer in range(2) for token, ids in enumerate(CHOSEN[:, layer].tolist())
)
ROUTE = """\
# route_trace v1
# model=m.gguf arch=a n_layer=1 n_expert=4 n_expert_used=1
# layer=0 expert_bytes=10 dense_bytes=1
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,1,1.0,0,10
"""
VLLM = {"choices": [{"routed_experts": CHOSEN.tolist()}], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
SGLANG = {"sglext": {"routed_experts": CHOSEN.tolist()}, "choices": [{}], "usage": VLLM["usage"]}


@pytest.mark.parametrize(
    ("format_name", "data", "why"),
    [
        ("jsonl", DUMP, "a line has 'layer' and 'topk_ids'"),
        ("jsonl", json.dumps({"model": "m", "num_experts": 8}).encode() + b"\n" + DUMP, "a line has 'layer'"),
        ("jsonl", gzip.compress(DUMP), "a line has 'layer'"),
        ("jsonl", b"\xef\xbb\xbf" + DUMP, "a line has 'layer'"),
        ("router-data", json.dumps(ROUTER).encode(), "it has 'router_data'"),
        ("mbolt", MBOLT, "it begins with MBLT"),
        ("deepseek-csv", DEEPSEEK.encode(), "its first line is 'Layer ID,"),
        ("bigmoe-csv", ROUTE.encode(), "its first line is '# route_trace v1'"),
        ("llama-csv", b"layer,expert\n0,1\n1,2\n0,3\n1,0\n", "its first line is 'layer,expert'"),
        ("llama-csv", b"0,1\n1,2\n0,3\n1,0\n", "its first line is '0,1'"),
        ("vllm", json.dumps(VLLM).encode(), "a response has 'choices'"),
        ("vllm", b"data: " + json.dumps(VLLM).encode() + b"\n\ndata: [DONE]\n", "a response has 'choices'"),
        ("sglang", json.dumps(SGLANG).encode(), "a response has 'sglext'"),
    ],
)
def test_by_what_it_holds(tmp_path: Path, format_name: str, data: bytes, why: str) -> None:
    """The same trace as under the format's name, save for the note that says which it was."""
    source = tmp_path / "log"
    source.write_bytes(data)
    named = import_trace(format_name, source, tmp_path / "named.trace")
    found = import_trace("auto", source, tmp_path / "auto.trace")
    assert found.manifest.notes[0].startswith(f"taken for {format_name}: {why}")
    assert found.manifest.notes[1:] == named.manifest.notes and found.manifest.source == f"import:{format_name}"
    assert found.digest == named.digest


def test_arrays_tables_and_folders(tmp_path: Path) -> None:
    np.savez(tmp_path / "own", experts=CHOSEN)
    np.savez(tmp_path / "engine", routed_experts=CHOSEN.astype(np.int32))
    np.save(tmp_path / "one", CHOSEN.astype(np.int32))
    rows = [{"t": t, "l": n, "e": ids} for t, part in enumerate(CHOSEN.tolist()) for n, ids in enumerate(part)]
    pl.DataFrame(rows).write_parquet(tmp_path / "table")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "prompt_1_data.csv").write_text(DEEPSEEK)
    for name, format_name in {
        "own.npz": "npz",
        "engine.npz": "vllm",
        "one.npy": "vllm",
        "table": "parquet",
        "folder": "deepseek-csv",
    }.items():
        trace = import_trace("auto", tmp_path / name, tmp_path / f"{name}.trace")
        assert trace.manifest.notes[0].startswith(f"taken for {format_name}: "), name


def test_every_collected_case(cases: Path, tmp_path: Path) -> None:
    """Logs of other projects are taken for what their READMEs import them as."""
    found = {}
    for source in sorted(cases.rglob("*.*")):
        if source.suffix not in (".jsonl", ".txt", ".csv") or source.stem in ("wrapped", "README"):
            continue
        options = ImportOptions(request_field="problem_id") if source.stem == "problem_id" else None
        if source.parent.name == "sglang-sglext" or source.stem.startswith("sglang"):
            options = ImportOptions(layers=4, top_k=2)
        name = f"{source.parent.name}-{source.name}"
        trace = import_trace("auto", source, tmp_path / f"{name}.trace", options)
        found[name] = trace.manifest.notes[0].split(":")[0].removeprefix("taken for ")
    assert len(found) >= 13
    for name, format_name in found.items():
        expected = "sglang" if "sgl" in name else "llama-csv" if "bom" in name and format_name != "vllm" else None
        expected = expected or ("jsonl" if name.startswith("jsonl") else "vllm")
        assert format_name == expected, name


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is of no format that is known: it begins with b''"),
        (b"hello world\n", "is of no format that is known"),
        (b'{"answer": 42}', "is of no format that is known"),
        (b'{"logical_count": [[1, 2]]}', "a profile and no trace: replay a trace with --policy static --profile"),
        (b"PK\x03\x04", "is not a whole zip file"),
        (b"\x80\x04N.", "is a pickle"),
        (b"\x1f\x8b\x08\x00", "is not a whole gzip file"),
    ],
)
def test_what_is_none(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(ImportFormatError) as error:
        import_trace("auto", tmp_path / "log", tmp_path / "a.trace")
    assert words in str(error.value) and "\n" not in str(error.value) and str(tmp_path / "log") in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="does not exist"):
        import_trace("auto", tmp_path / "none", tmp_path / "a.trace")
    with pytest.raises(ImportFormatError, match=r"a folder without \.csv files"):
        import_trace("auto", tmp_path, tmp_path / "a.trace")
    (tmp_path / "log").write_bytes(DUMP)
    with pytest.raises(ImportFormatError, match="jsonl files say that themselves: leave --layers out"):
        import_trace("auto", tmp_path / "log", tmp_path / "a.trace", ImportOptions(layers=2))
    assert "auto" not in IMPORTERS

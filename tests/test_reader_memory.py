"""No reader takes more of the machine than its input gives it reason to: peak resident memory, a process for each.

At most 8 times the file for text, 1.5 times the arrays that come of it for binary formats, and in either case what a
process takes that does next to nothing (`PYTHON_BYTES`). Dumps in Parquet are gathered row by row as lines of JSON are:
8 times their columns.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.helpers import large
from tests.helpers.commands import PYTHON_BYTES, ROOT, command
from tests.helpers.large import LAYERS, TOP_K, chosen
from tests.helpers.traces import make_manifest, make_trace
from tracekit import shards
from tracekit.manifest import Shard
from tracekit.rows import Columns
from tracekit.writer import TraceWriter

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say the peak")
Write = Callable[[Path, int], None]
TEXT = 8
BINARY = 1.5
IDS = LAYERS * TOP_K


@pytest.mark.parametrize(
    ("format_name", "write", "tokens", "most"),
    [
        pytest.param(*case, id=case[1].__name__)
        for case in [
            ("jsonl", large.jsonl, 30_000, TEXT),
            ("bigmoe-csv", large.bigmoe_csv, 25_000, TEXT),
            ("llama-csv", large.llama_csv, 40_000, TEXT),
            ("llama-csv", large.llama_ranked_csv, 20_000, TEXT),
            ("deepseek-csv", large.deepseek_csv, 30_000, TEXT),
            ("router-data", large.router_data, 20_000, TEXT),
            ("vllm", large.vllm_nested, 120_000, TEXT),
            ("vllm", large.vllm_small, 50_000, TEXT),
            ("vllm", large.vllm_base64, 300_000, TEXT),
            ("vllm", large.vllm_events, 24_000, TEXT),
            ("sglang", large.sglang, 80_000, TEXT),
        ]
    ],
)
def test_text(tmp_path: Path, format_name: str, write: Write, tokens: int, most: float) -> None:
    source = tmp_path / "source"
    write(source, tokens)
    done = command("import", format_name, source, "--output", tmp_path / "o.trace", limit_s=300)
    assert done.code == 0, done.err
    assert 0 < done.peak <= PYTHON_BYTES + most * source.stat().st_size


@pytest.mark.parametrize(
    ("format_name", "write", "tokens", "most", "bytes_of_a_token"),
    [
        pytest.param(*case, id=case[1].__name__)
        for case in [
            ("mbolt", large.mbolt, 60_000, BINARY, LAYERS * (3 + TOP_K) * 4),
            ("npz", large.npz, 120_000, BINARY, IDS * 8),
            ("vllm", large.npy, 200_000, BINARY, IDS * 4),
            # Token, layer, where the list begins, and the ids.
            ("parquet", large.parquet, 20_000, TEXT, LAYERS * (4 + 2 + 8 + TOP_K * 2)),
        ]
    ],
)
def test_binary(
    tmp_path: Path, format_name: str, write: Write, tokens: int, most: float, bytes_of_a_token: int
) -> None:
    source = tmp_path / "source.npz"
    write(source, tokens)
    done = command("import", format_name, source, "--output", tmp_path / "o.trace", limit_s=300)
    assert done.code == 0, done.err
    assert 0 < done.peak <= PYTHON_BYTES + most * tokens * bytes_of_a_token


def peak_of(program: str, *arguments: object) -> int:
    """Most resident memory of a Python process that runs the program."""
    told = "import pathlib; print(pathlib.Path('/proc/self/status').read_text())"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\n{told}", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found = re.search(r"VmHWM:\s*(\d+) kB", done.stdout)
    assert found is not None
    return int(found[1]) << 10


def test_a_trace(tmp_path: Path) -> None:
    """Routing, gate logits and lookahead, in several shards."""
    tokens, piece = 24_000, 8_000
    values = np.random.default_rng(0).normal(size=(piece, LAYERS, 64)).astype(np.float16)
    with TraceWriter(tmp_path / "a.trace", make_manifest(LAYERS, 64, TOP_K)) as writer:
        for first in range(0, tokens, piece):
            step = np.arange(first, first + piece)
            ahead = {1: values[:, 1:]}
            writer.append(
                step=step, request=0, position=step, phase=1, experts=chosen(piece), logits=values, lookahead=ahead
            )
            writer.flush()
    program = "from tracekit.trace import Trace; t = Trace.open(sys.argv[1], verify=True)\nt.experts; x = t.{}"
    routing = tokens * (17 + IDS * 2)
    for what, layers in (("logits", LAYERS), ("lookahead(1)", LAYERS - 1)):
        peak = peak_of(program.format(what), tmp_path / "a.trace")
        assert peak <= PYTHON_BYTES + BINARY * (routing + tokens * layers * 64 * 2), what


def test_a_trace_of_runs(tmp_path: Path) -> None:
    """Some kilobytes that say ten million times the same."""
    tokens = 8_000_000
    path = tmp_path / "a.trace"
    path.mkdir()
    none, manifest = np.zeros(tokens, np.int32), make_manifest(1, 2, 1)
    columns = Columns(none, none, none, np.ones(tokens, np.uint8), none - 1)
    table = shards.routing_table(columns, np.zeros((tokens, 1, 1), np.uint16), {}, manifest)
    table.write_parquet(path / "routing-00000.parquet", compression="zstd", statistics=False, row_group_size=tokens)
    assert (path / "routing-00000.parquet").stat().st_size < 1 << 16
    digest = shards.file_digest(path / "routing-00000.parquet")
    shard = Shard(name="routing-00000.parquet", kind="routing", rows=tokens, sha256=digest)
    counts = {"tokens": tokens, "requests": 1, "steps": 1, "complete": True, "shards": [shard]}
    (path / "manifest.json").write_bytes(msgspec.structs.replace(manifest, **counts).encode())
    program = "from tracekit.trace import Trace; t = Trace.open(sys.argv[1], verify=True)"
    assert peak_of(program, path) <= PYTHON_BYTES + BINARY * tokens * (17 + 2)


def test_a_parquet_dump_of_runs(tmp_path: Path) -> None:
    """Rows are no argument: real ones differ, and so take room in the file."""
    import polars as pl

    source = tmp_path / "runs.parquet"
    rows = 20_000_000
    pl.DataFrame({"token": pl.repeat(0, rows, eager=True), "layer": pl.repeat(0, rows, eager=True)}).with_columns(
        ids=pl.lit(1)
    ).write_parquet(source, statistics=False)
    done = command("import", "parquet", source, "--output", tmp_path / "o.trace")
    assert done.refused("runs.parquet", "rows")
    assert 0 < done.peak < PYTHON_BYTES


def test_a_predictor(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.helpers.predictors import random_artefact

    ahead = {1: np.zeros((20, LAYERS - 1, 192))}
    trace = make_trace(tmp_path / "a.trace", chosen(20), num_experts=192, lookahead=ahead)
    random_artefact(tmp_path / "p", "mlp", trace)
    program = "from policies.learned.artefact import load_artefact; p = load_artefact(sys.argv[1], 'prefetch')"
    stored = (tmp_path / "p" / "predictor.safetensors").stat().st_size
    assert stored > 10 << 20
    assert peak_of(program, tmp_path / "p") <= PYTHON_BYTES + BINARY * 2 * stored


@pytest.mark.parametrize("table", ["--plan", "--hardware", "--model-shape"])
def test_tables_of_fixed_meaning_are_small(tmp_path: Path, table: str) -> None:
    trace = make_trace(tmp_path / "a.trace", chosen(5), num_experts=8)
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(3 << 30)
    done = command("replay", trace.path, "--capacity", "2/layer", table, tmp_path / "huge.toml")
    assert done.refused("huge.toml", "too large")
    assert 0 < done.peak < PYTHON_BYTES

"""Whatever the bytes, a reader gives what it reads or one harmless line: no traceback, hang, or memory without end.

2,000 inputs by default; `make fuzz` asks for 100,000. The counts and the seed are printed: the same seed makes the same
inputs.
"""

import json
import os
import resource
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.decisions.foresight import Scores
from engine.hardware import load_hardware
from engine.plan.plan import load_plan
from engine.shapes import load_shape
from engine.simulator.costs import model_costs
from experiments.study.study_file import load_study
from experiments.study.study_folder import TABLES, parquet
from experiments.study.study_tables import read_table
from policies.learned.artefact import CARD, TENSORS, load_artefact
from tests.helpers.commands import harmless
from tests.helpers.fuzzing import Files, Reader, mutated, with_digests
from tests.helpers.predictors import random_artefact
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import TracekitError
from tracekit.manifest import MANIFEST_NAME
from tracekit.recorder.prompts import read_prompts
from tracekit.trace import Trace

INPUTS = int(os.environ.get("TRACEKIT_FUZZ", "2000"))
SEED = int(os.environ.get("TRACEKIT_FUZZ_SEED", "18"))
SLOWEST_S = 10.0
MOST_GROWN = 400 << 20
"""Of resident memory, over all inputs: every sample is a few kilobytes."""
PLAN = b'cache.capacity = "4/layer"\neviction.policy = "lru"\nprefetch.predictor = "gate"\nprefetch.distance = 1\n'
STUDY = b"""
traces = ["a.trace"]
[grid]
capacity = ["2/layer", "25%"]
eviction = ["lru", "lfu"]
"""


def _files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _shards_right(manifest: Any, digests: dict[str, str]) -> None:
    for shard in manifest["shards"]:
        shard["sha256"] = digests[shard["name"]]


def _tensors_right(card: Any, digests: dict[str, str]) -> None:
    card["tensors_sha256"] = digests[TENSORS]


def _trace(folder: Path) -> object:
    trace = Trace.open(folder, verify=True)
    return trace.logits, trace.lookahead(1), trace.experts


def _predictor(trace: Trace, folder: Path) -> object:
    found = load_artefact(folder, "prefetch")
    return Scores(trace, found).piece(0, 2)


def _table(name: str, folder: Path) -> object:
    try:
        return read_table((folder / name).read_bytes(), TABLES[name])
    except ValueError as error:
        raise TracekitError(error) from None


def _machine(trace: Trace, folder: Path) -> object:
    manifest = msgspec.structs.replace(trace.manifest, expert_bytes=[1 << 24] * 3, expert_params=[1 << 23] * 3)
    return model_costs(manifest, load_hardware(folder / "h.toml"), None, None, None)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    place = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    trace = make_trace(
        place / "a.trace",
        random_experts(rng, 6, 3, 8),
        weights=np.full((6, 3, 2), 0.5),
        logits=rng.normal(size=(6, 3, 8)),
        lookahead={1: rng.normal(size=(6, 2, 8))},
    )
    random_artefact(place / "p", "linear", trace)
    machine = load_hardware("rtx3060").to_toml().encode()
    shape = Path(load_shape.__code__.co_filename).parent / "models" / "mixtral-8x7b.toml"
    prompts = b'{"id": "a", "prompt": "Once"}\n{"id": 2, "messages": [{"role": "user", "content": "b"}]}\n'
    import polars as pl

    tables = {name: parquet(pl.DataFrame(schema=columns)) for name, columns in TABLES.items()}
    return [
        Reader("trace", _files(trace.path), _trace, lambda files: with_digests(files, MANIFEST_NAME, _shards_right)),
        Reader(
            "predictor",
            _files(place / "p"),
            partial(_predictor, trace),
            lambda files: with_digests(files, CARD, _tensors_right),
        ),
        Reader("plan", {"p.toml": PLAN}, lambda folder: load_plan(folder / "p.toml")),
        Reader("hardware", {"h.toml": machine}, partial(_machine, trace)),
        Reader("shape", {"m.toml": shape.read_bytes()}, lambda folder: load_shape(folder / "m.toml")),
        Reader("study", {"s.toml": STUDY}, lambda folder: load_study(folder / "s.toml")),
        Reader("prompts", {"p.jsonl": prompts}, lambda folder: read_prompts(folder / "p.jsonl")),
        *(Reader(f"table {name}", {name: data}, partial(_table, name)) for name, data in tables.items()),
    ]


def judged(reader: Reader, files: Files, folder: Path) -> str:
    """ "read" or "refused"; an assertion where it is neither."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    begun = time.monotonic()
    try:
        reader.read(folder)
        outcome = "read"
    except TracekitError as error:
        said = str(error)
        assert said and "\n" not in said and harmless(said) and len(said) <= 1_000, said
        outcome = "refused"
    assert time.monotonic() - begun < SLOWEST_S
    return outcome


def test_whatever_the_bytes(readers: list[Reader], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reader in readers:  # what is imported on first use is not what is measured
        assert judged(reader, reader.sample, tmp_path / "in") == "read", reader.name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    outcomes: Counter[str] = Counter()
    for number in range(INPUTS):
        rng = np.random.default_rng([SEED, number])
        reader = readers[number % len(readers)]
        try:
            outcomes[judged(reader, mutated(reader, rng), tmp_path / "in")] += 1
        except Exception as error:
            raise AssertionError(f"{reader.name}, seed {SEED}, input {number}: {type(error).__name__}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    with capsys.disabled():
        print(f"\nfuzz: {INPUTS} inputs, seed {SEED}, {dict(outcomes)}, resident memory grew by {grown >> 20} MiB")
    assert grown < MOST_GROWN
    assert outcomes["refused"] > INPUTS // 4


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=max(50, INPUTS // 10), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_the_values(
    readers: list[Reader], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A value of any shape in any place of a JSON document, the digests being right."""
    reader = readers[data.draw(st.integers(0, 1))]
    document = MANIFEST_NAME if reader.name == "trace" else CARD
    value = json.loads(reader.sample[document])
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(VALUES)
    files = reader.mend(reader.sample | {document: json.dumps(value).encode()})
    judged(reader, files, tmp_path_factory.mktemp("values") / "in")

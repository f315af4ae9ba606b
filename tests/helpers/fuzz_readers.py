"""Every reader of files that strangers make, each with a sound small sample."""

import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from engine.decisions.foresight import Scores
from engine.hardware import load_hardware
from engine.hardware.prices import load_prices
from engine.plan.placement import load_placement
from engine.plan.plan import load_plan, plan_from_dict
from engine.replay.counts import read_cells
from engine.runtime.offload import offload
from engine.runtime.offload_state import offloaded
from engine.runtime.storage.disk_store import load_slabs, open_slabs
from engine.runtime.storage.slab_files import INDEX, REST
from engine.shapes import load_shape
from engine.simulator.costs import model_costs
from experiments.quality.losses import load_losses
from experiments.study import Threads, load_study, run_study
from experiments.study.schema import SCHEMA
from experiments.study.study_content import report_content
from experiments.study.study_folder import PIECES, SUMMARY, TABLES, StudyFolder, parquet
from experiments.study.study_tables import read_table
from policies.learned.artefact import CARD, TENSORS, load_artefact
from tests.helpers.foreign import SOURCES
from tests.helpers.fuzzing import Files, Reader, with_digests
from tests.helpers.predictors import random_artefact
from tests.helpers.quality import measurement
from tests.helpers.studies import traced
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import TracekitError
from tracekit.importers import ImportOptions, import_trace
from tracekit.manifest import MANIFEST_NAME
from tracekit.popularity import read_counts
from tracekit.priors.family import load_family
from tracekit.recorder.models import check_experts, load_config
from tracekit.recorder.prompts import read_prompts
from tracekit.recorder.seam import moe_layers
from tracekit.trace import Trace

PLAN = b'cache.capacity = "4/layer"\neviction.policy = "lru"\nprefetch.predictor = "gate"\nprefetch.distance = 1\n'
PLACEMENT = b"""schema = 1
by = "marginal"
slots = "1/layer"
experts_per_layer = [3, 3]
pinned = {0 = [2], 1 = [0, 1]}
source = {trace = "a.trace", trace_digest = "a", model = "m", requests = ["b"]}
"""
STUDY = b"""
traces = ["a.trace"]
[grid]
capacity = ["2/layer", "25%"]
eviction = ["lru", "lfu"]
"""
RUN = """
traces = ["{place}/s.trace"]
regret = 1
[grid]
capacity = ["2/layer", "50%"]
eviction = ["lru", "belady"]
prefetch = ["none", "gate"]
hardware = "rtx3060"
model_shape = "mixtral-8x7b"
"""
PROMPTS = b'{"id": "a", "prompt": "Once"}\n{"id": 2, "messages": [{"role": "user", "content": "b"}]}\n'
CELLS = b"name,steps,tokens,distinct,demand_loads,prefetches,useful,context,ms_per_step\na,10,2,3.5,40,0.5,1,100,3.5\n"


def all_readers(place: Path) -> list[Reader]:
    """The readers; `place` is an empty folder to make the samples in."""
    return [
        *_readers_of_tables(place),
        *_readers_of_figures(),
        *_readers_of_traces(place),
        *_readers_of_studies(place),
        *_readers_of_models(place),
    ]


def files_of(folder: Path) -> Files:
    """Its files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _readers_of_tables(place: Path) -> list[Reader]:
    machine = load_hardware("rtx3060").to_toml().encode()
    shape = Path(load_shape.__code__.co_filename).parent / "models" / "mixtral-8x7b.toml"
    trace = make_trace(place / "m.trace", random_experts(np.random.default_rng(0), 6, 3, 8))
    return [
        Reader("plan", {"p.toml": PLAN}, lambda folder: load_plan(folder / "p.toml")),
        Reader("placement", {"p.toml": PLACEMENT}, lambda folder: load_placement(folder / "p.toml").keys([3, 3], "p")),
        Reader("hardware", {"h.toml": machine}, partial(_machine, trace)),
        Reader("shape", {"m.toml": shape.read_bytes()}, lambda folder: load_shape(folder / "m.toml")),
        Reader("study", {"s.toml": STUDY}, lambda folder: load_study(folder / "s.toml")),
        Reader("prompts", {"p.jsonl": PROMPTS}, lambda folder: read_prompts(folder / "p.jsonl")),
        Reader("counts", {"c.csv": CELLS}, lambda folder: read_cells(folder / "c.csv")),
        Reader(
            "popularity",
            {"p.json": json.dumps({"logical_count": [[3, 1], [0, 7]]}).encode()},
            lambda folder: read_counts(folder / "p.json"),
        ),
    ]


def _readers_of_figures() -> list[Reader]:
    """What others measured, asked or paid."""
    family = Path(load_family.__code__.co_filename).parent / "families" / "mixtral.toml"
    prices = Path(load_prices.__code__.co_filename).parent / "prices.toml"
    measured = measurement({"hqq-4bit": 0.01}).to_json()
    return [
        Reader("prior family", {"f.toml": family.read_bytes()}, lambda folder: load_family(folder / "f.toml")),
        Reader("prices", {"p.toml": prices.read_bytes()}, lambda folder: load_prices(folder / "p.toml")),
        Reader("losses", {"l.json": b'{"q4_k": 0.02}'}, lambda folder: load_losses(folder / "l.json")),
        Reader("quality", {"q.json": measured.encode()}, lambda folder: load_losses(folder / "q.json")),
    ]


def _machine(trace: Trace, folder: Path) -> object:
    manifest = msgspec.structs.replace(trace.manifest, expert_bytes=[1 << 24] * 3, expert_params=[1 << 23] * 3)
    return model_costs(manifest, load_hardware(folder / "h.toml"), None, None, None)


def _readers_of_traces(place: Path) -> list[Reader]:
    rng = np.random.default_rng(0)
    trace = make_trace(
        place / "a.trace",
        random_experts(rng, 6, 3, 8),
        weights=np.full((6, 3, 2), 0.5),
        logits=rng.normal(size=(6, 3, 8)),
        lookahead={1: rng.normal(size=(6, 2, 8))},
    )
    random_artefact(place / "p", "linear", trace)

    def shards_right(manifest: Any, digests: dict[str, str]) -> None:
        for shard in manifest["shards"]:
            shard["sha256"] = digests[shard["name"]]

    def tensors_right(card: Any, digests: dict[str, str]) -> None:
        card["tensors_sha256"] = digests[TENSORS]

    found = [
        Reader("trace", files_of(trace.path), _trace, lambda files: with_digests(files, MANIFEST_NAME, shards_right)),
        Reader(
            "predictor",
            files_of(place / "p"),
            partial(_predictor, trace),
            lambda files: with_digests(files, CARD, tensors_right),
        ),
    ]
    for number, (name, data) in enumerate(SOURCES):
        file = "source.json" if data.startswith(b"{") and b"\n" not in data.strip() else "source.bin"
        found.append(Reader(f"import {name} {number}", {file: data}, partial(_imported, name, file)))
    return found


def _trace(folder: Path) -> object:
    trace = Trace.open(folder, verify=True)
    return trace.logits, trace.lookahead(1), trace.experts


def _predictor(trace: Trace, folder: Path) -> object:
    found = load_artefact(folder, "prefetch")
    return Scores(trace, found).piece(0, 2)


def _imported(format_name: str, file: str, folder: Path) -> object:
    options = ImportOptions(layers=2, top_k=2) if format_name == "sglang" else ImportOptions()
    return import_trace(format_name, folder / file, folder / "out.trace", options)


def _readers_of_studies(place: Path) -> list[Reader]:
    traced(place / "s.trace", 1)
    (place / "run.toml").write_text(RUN.format(place=place))
    run_study(load_study(place / "run.toml"), place / "study", Threads(1))

    def tables_right(summary: Any, digests: dict[str, str]) -> None:
        summary["files"] = {name: digests[name] for name in TABLES}

    pieces = {f"{PIECES}/{path.name}": path.read_bytes() for path in sorted((place / "study" / PIECES).iterdir())[:2]}
    empty = {name: parquet(pl.DataFrame(schema=columns)) for name, columns in TABLES.items()}
    return [
        Reader(
            "finished study",
            files_of(place / "study"),
            report_content,
            lambda files: with_digests(files, SUMMARY, tables_right),
        ),
        Reader("cells", pieces, _pieces, _named_by_digest),
        *(Reader(f"table {name}", {name: data}, partial(_table, name)) for name, data in empty.items()),
    ]


def _pieces(folder: Path) -> object:
    with StudyFolder(folder) as place:
        return place.pieces(PIECES, SCHEMA)


def _named_by_digest(files: Files) -> Files:
    return {
        f"{name.split('.')[0]}.{hashlib.sha256(data).hexdigest()[:32]}.parquet": data for name, data in files.items()
    }


def _table(name: str, folder: Path) -> object:
    try:
        return read_table((folder / name).read_bytes(), TABLES[name])
    except ValueError as error:
        raise TracekitError(error) from None


def _readers_of_models(place: Path) -> list[Reader]:
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "model")
    plan = plan_from_dict({"cache": {"capacity": "2/layer"}})
    with offloaded(offload(place / "model", plan, host="disk", slabs=place / "slabs", device="cpu")):
        pass
    described = {"config.json": (place / "model" / "config.json").read_bytes()}
    return [
        Reader("slabs", files_of(place / "slabs"), partial(_slabs, place / "model"), _slabs_right),
        Reader("model", described, lambda folder: check_experts(load_config(folder), folder)),
    ]


def _slabs(model: Path, folder: Path) -> object:
    loaded = load_slabs(model, folder)
    store = open_slabs(folder, loaded, moe_layers(loaded), (None, None))
    try:
        return [store.views(key) for key in range(2 * 3)]
    except OSError as error:  # a load that fails; the loader says so in its own words
        raise TracekitError(error) from None
    finally:
        store.close()


def _slabs_right(files: Files) -> Files:
    def right(index: Any, digests: dict[str, str]) -> None:
        index["rest_sha256"] = digests[REST]
        for layer in index["layers"]:
            data = io.BytesIO(files[layer["file"]])
            slabs = [data.read(layer["stride"])[: layer["bytes"]] for _ in range(min(layer["experts"], 10))]
            layer["digests"] = [hashlib.sha256(slab).hexdigest() for slab in slabs]

    return with_digests(files, INDEX, right)

"""Plans as other engines' settings: patterns over real tensor names, masks by brute force, what is lost said."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.export import export, slots_per_layer
from engine.plan.foreign_engines import ENGINES, Sized, host_pattern, ranked, resident_layers
from engine.plan.plan import Plan
from tracekit.errors import PlanError

MIXTRAL = Sized(tuple(range(32)), 8, 100 << 20)
ARCHITECTURES = {"LLAMA": 32, "QWEN3MOE": 48, "DEEPSEEK2": 61, "GPT_OSS": 24, "GLM4_MOE": 46, "LLAMA4": 48}


def tensor_names(architecture: str, layers: int) -> list[str]:
    """Every tensor that llama.cpp's converter may write for such a model."""
    constants: Any = pytest.importorskip("gguf.constants", reason="names of the gguf package")
    kinds = constants.MODEL_TENSORS[constants.MODEL_ARCH[architecture]]
    names = [constants.TENSOR_NAMES[kind] for kind in kinds]
    return [
        f"{name.format(bid=layer)}.{part}"
        for name in names
        for layer in (range(layers) if "{bid}" in name else [0])
        for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_a_pattern_names_the_experts_that_are_elsewhere_and_nothing_else(architecture: str, share: float) -> None:
    layers = ARCHITECTURES[architecture]
    first = 3 if architecture == "DEEPSEEK2" else 0
    model = Sized(tuple(range(first, layers)), 64, 1 << 20)
    resident = resident_layers(model, 64 * share)
    assert len(resident) == int(share * len(model.moe_layers) + 1e-9)
    pattern = host_pattern(model, resident)
    names = tensor_names(architecture, layers)
    chosen = {name for name in names if pattern and re.search(pattern, name)}
    # By brute force: split the name, look at the layer's number and the part's end.
    expected = set()
    for name in names:
        block = name.split(".")
        if block[0] == "blk" and block[2].endswith("_exps"):
            layer = int(block[1])
            if layer in model.moe_layers and layer not in resident:
                expected.add(name)
    assert chosen == expected
    assert (share == 1.0) == (not pattern) and (share == 1.0 or chosen)


@given(slots=st.integers(1, 8), per_layer=st.booleans())
def test_slots_are_the_plans(slots: int, per_layer: bool) -> None:
    plan = Plan(f"{slots}/layer" if per_layer else str(32 * slots))
    assert slots_per_layer(plan, MIXTRAL) == slots
    assert slots_per_layer(Plan(f"{slots * 32 * 100}MiB"), MIXTRAL) == slots


def words(engine: str, plan: Plan, **more: Any) -> tuple[dict[str, str], str]:
    found = export(plan, MIXTRAL, engine, **more)
    assert found.command.split()[0].startswith("--")
    return dict(found.arguments), "\n".join(found.lost)


def test_llama_cpp() -> None:
    plan = Plan(
        "4/layer", prefetch="gate", weights="hqq-4bit", miss="auto", serve={"context": 8192, "kv_cache": "q8_0"}
    )
    given, lost = words("llama.cpp", plan)
    assert given["--moe-cache-mib"] == str(4 * 32 * 100) and "--cpu-moe" in given
    assert (given["--ctx-size"], given["--cache-type-k"], given["--cache-type-v"]) == ("8192", "q8_0", "q8_0")
    assert all(word in lost for word in ("eviction lru", "prefetch gate", "misses auto", "about 4.5 bits"))
    assert "--moe-cache-cpu-share" not in given
    note = export(plan, MIXTRAL, "llama.cpp").notes[0]
    assert "16 whole layers" in note and r"blk\.(0|1|2" in note
    everything, lost = words("llama.cpp", Plan("8/layer", weights="q4_k"))
    assert "--cpu-moe" not in everything and lost == ""


def test_ktransformers() -> None:
    given, lost = words("ktransformers", Plan("3/layer", eviction="static", miss="host"), counts="c.json")
    assert given == {
        "--kt-num-gpu-experts": "3", "--kt-expert-placement-strategy": "frequency", "--init-expert-location": "c.pt",
    }  # fmt: skip
    assert lost == ""
    given, lost = words("ktransformers", Plan("100", serve={"context": 4096, "batch": 2}))
    assert "--kt-num-gpu-experts" not in given and int(8 * 32 * float(given["--kt-gpu-experts-ratio"])) == 100
    assert given["--max-running-requests"] == "2" and "--kt-enable-dynamic-expert-update" in given
    assert "always computed on the host" in lost


def test_vllm_and_sglang() -> None:
    given, lost = words("vllm", Plan("2/layer", serve={"context": 2048, "batch": 4}))
    assert given["--cpu-offload-gb"] == f"{6 * 32 * 100 / 1024:.1f}"
    assert given["--cpu-offload-params"] == "w13_weight w2_weight" and given["--max-num-seqs"] == "4"
    assert "stays there" in lost
    given, lost = words("sglang", Plan("2/layer", weights="hqq-2bit", serve={"context": 2048}))
    assert given["--context-length"] == "2048" and "does not read HQQ" in lost


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_dropped_silently(engine: str) -> None:
    """Whatever a plan says beyond a capacity is an argument or a line."""
    plan = Plan(
        "4/layer",
        eviction="s3fifo",
        prefetch="markov",
        weights={"experts": "hqq-3bit", "attention": "hqq-4bit"},
        routing="drop-cold",
        miss="split",
        admission={"policy": "second-miss", "per_step": 3},
    )
    _, lost = words(engine, plan)
    assert all(word in lost for word in ("s3fifo", "markov", "hqq-3bit", "hqq-4bit", "drop-cold"))
    assert all(word in lost for word in ("misses split", "admission second-miss, 3 per step"))


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(PlanError, match="did you mean 'vllm'"):
        export(Plan("4/layer"), MIXTRAL, "vlm")


def test_pinned_layers_are_the_layers_that_llama_cpp_leaves_on_the_device() -> None:
    plan = Plan("4/layer; layers 0-3: 8", placement="layers 0-3")
    given, lost = words("llama.cpp", plan)
    pattern = given["--override-tensor"].removesuffix("=CPU")
    elsewhere = [layer for layer in range(32) if re.search(pattern, f"blk.{layer}.ffn_up_exps.weight")]
    assert elsewhere == list(range(4, 32)) and "--cpu-moe" not in given
    # The cache is what is left beside them, and nothing of where slots lie is lost.
    assert given["--moe-cache-mib"] == str(28 * 4 * 100)
    assert "capacity by layer" not in lost and "placement" not in lost
    assert slots_per_layer(plan, MIXTRAL) == (28 * 4 + 4 * 8) / 32
    # Nothing beside: no cache, and what is not there is the host's.
    given, lost = words("llama.cpp", Plan("0/layer; layers 0-3: 8", placement="layers 0-3", miss="host"))
    assert "--moe-cache-mib" not in given and "misses" not in lost and "eviction" not in lost
    _, lost = words("llama.cpp", Plan("0/layer; layers 0-3: 8", placement="layers 0-3"))
    assert "misses copy: without a cache the host computes them all" in lost
    # Layers that have more slots of their own, and are not pinned, are not told.
    _, lost = words("llama.cpp", Plan("4/layer; layers 0-4: 8", placement="layers 0-3"))
    assert "capacity by layer" in lost


@given(share=st.floats(0.01, 0.99))
def test_a_share_of_misses_is_llama_cpps(share: float) -> None:
    given, lost = words("llama.cpp", Plan("4/layer", miss={"where": "split", "share": share}))
    assert float(given["--moe-cache-cpu-share"]) == pytest.approx(1 - share, rel=0.01)
    assert "until the cache is full" in lost


def test_where_misses_go_is_said_or_lost() -> None:
    for share in (0, 1):
        given, lost = words("llama.cpp", Plan("4/layer", miss={"where": "split", "share": share}))
        assert "--moe-cache-cpu-share" not in given and ("misses split" in lost) == (share == 0)
    assert "misses" not in words("llama.cpp", Plan("4/layer"))[1]
    for engine in ("vllm", "sglang"):
        assert "misses host" in words(engine, Plan("4/layer", miss="host"))[1]
    # A bound on what is taken in at a step is a branch's, and only where the host computes what is missing.
    even = {"per_step": 64, "per_layer": "even"}
    found = export(Plan("4/layer", miss="host", admission=even), MIXTRAL, "llama.cpp")
    assert any(note.endswith("--moe-expert-cache 4 --moe-expert-cache-inserts 2") for note in found.notes)
    assert any("admission always, 64 per step" in line for line in found.lost)
    beside = Plan("3/layer; layers 0-3: 8", placement="layers 0-3", miss="host", admission=even)
    notes = export(beside, MIXTRAL, "llama.cpp").notes
    assert any("--moe-expert-cache 3 --moe-expert-cache-inserts 2" in note for note in notes)
    rounded = export(Plan("4/layer", miss="host", admission={"per_step": 40}), MIXTRAL, "llama.cpp")
    assert any(note.endswith("--moe-expert-cache-inserts 1 (for 40 of all layers)") for note in rounded.notes)
    copied = export(Plan("4/layer", admission=even), MIXTRAL, "llama.cpp")
    assert not any("27861" in note for note in copied.notes)
    # So is a cache in vLLM, which copies what is missing.
    assert any("--moe-expert-cache-size 4" in note for note in export(Plan("4/layer"), MIXTRAL, "vllm").notes)
    assert not any("37190" in note for note in export(Plan("4/layer", miss="host"), MIXTRAL, "vllm").notes)


def frequency(counts: np.ndarray, every: int) -> set[tuple[int, int]]:
    """What KTransformers places by frequency: so many of the highest counts, all layers together."""
    order = np.argsort(-counts.ravel(), kind="stable")[:every]
    return {(int(key) // counts.shape[1], int(key) % counts.shape[1]) for key in order}


@given(data=st.data())
def test_what_is_pinned_is_what_ktransformers_places_first(data: st.DataObject) -> None:
    layers, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 8))
    cells = st.tuples(st.integers(0, layers - 1), st.integers(0, experts - 1))
    chosen = data.draw(st.sets(cells, min_size=1))
    total = data.draw(st.integers(len(chosen), layers * experts))
    pinned = {layer: [expert for own, expert in sorted(chosen) if own == layer] for layer, _ in chosen}
    counts = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 50, (layers, experts)).astype(float)
    placed = frequency(ranked(counts, pinned), total)
    assert chosen <= placed
    # The others are the most frequent of those that are left.
    rest = counts.copy()
    rest[tuple(zip(*chosen, strict=True))] = -1
    assert sorted(counts[cell] for cell in placed - chosen) == sorted(
        counts[cell] for cell in frequency(rest, total - len(chosen))
    )
    model = Sized(tuple(range(layers)), experts, 1 << 20)
    found = export(
        Plan(str(total), placement="p.placement.toml"), model, "ktransformers", counts="c.json", pinned=pinned
    )
    given = dict(found.arguments)
    told = int(given["--kt-num-gpu-experts"]) * layers if "--kt-num-gpu-experts" in given else None
    assert (int(layers * experts * float(given["--kt-gpu-experts-ratio"])) if told is None else told) == total
    assert given["--init-expert-location"] == "c.pt" and "--kt-enable-dynamic-expert-update" not in given
    assert not any("placement" in line for line in found.lost)


def test_the_counts_that_ktransformers_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note's one line makes the file: [passes, model layers, experts] under the name that its loader asks for."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text('{"logical_count": [[0, 3], [2, 1]]}')
    (note,) = (
        note for note in export(Plan("1/layer"), MIXTRAL, "ktransformers", counts="c.json").notes if "torch" in note
    )
    line = re.search(r'python -c "(.*)"$', note)
    assert line is not None
    exec(line[1], {})
    loaded = torch.load("c.pt", map_location="cpu", weights_only=True)["logical_count"]
    assert loaded.tolist() == [[[0, 3], [2, 1]]]


def test_whole_layers_elsewhere() -> None:
    given, lost = words("ktransformers", Plan("8/layer"))  # all of them
    assert "--kt-enable-dynamic-expert-update" not in given and "eviction" not in lost
    first = Plan("0/layer; layers 0-3: 8", placement="layers 0-3", miss="host")
    given, lost = words("ktransformers", first)
    assert given["--kt-expert-placement-strategy"] == "front-loading" and lost == ""
    assert given["--kt-num-gpu-experts"] == "1"  # of 32 layers: four of eight experts
    _, lost = words("vllm", first)
    assert "placement layers 0-3: the last layers are on the device there" in lost
    # vLLM leaves those of the first layers on the host.
    last = Plan("0/layer; layers 28-31: 8", placement="layers 28-31")
    given, lost = words("vllm", last)
    assert given["--cpu-offload-gb"] == f"{28 * 8 * 100 / 1024:.1f}" and lost == ""
    _, lost = words("ktransformers", last)
    assert "with --counts FILE the pinned experts are placed" in lost
    for engine in ENGINES:
        one = export(Plan("4/layer", placement="x.placement.toml"), MIXTRAL, engine, pinned={3: [1, 2]})
        assert any("placement x.placement.toml" in line for line in one.lost), engine
        by = export(Plan("4/layer", placement={"pinned": "x.toml", "by": "label"}), MIXTRAL, engine, pinned={3: [1]})
        assert any("placement by domain" in line for line in by.lost), engine

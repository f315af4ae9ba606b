"""Plans as other engines' settings: patterns over real tensor names, masks by brute force, what is lost said."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.export import ENGINES, Sized, export, host_pattern, resident_layers, slots_per_layer
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
    note = export(plan, MIXTRAL, "llama.cpp").notes[0]
    assert "16 whole layers" in note and r"blk\.(0|1|2" in note
    everything, lost = words("llama.cpp", Plan("8/layer", weights="q4_k"))
    assert "--cpu-moe" not in everything and lost == ""


def test_ktransformers() -> None:
    given, lost = words("ktransformers", Plan("3/layer", eviction="static", miss="host"), counts="c.json")
    assert given == {
        "--kt-num-gpu-experts": "3", "--kt-expert-placement-strategy": "frequency", "--init-expert-location": "c.json",
    }  # fmt: skip
    assert lost == ""
    given, lost = words("ktransformers", Plan("100", serve={"context": 4096, "batch": 2}))
    assert given["--kt-num-gpu-experts"] == "3" and "3.12 experts of a layer" in lost
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
    found = export(plan, MIXTRAL, "llama.cpp")
    pattern = re.search(r"--override-tensor '(.*)=CPU'", found.notes[0])
    assert pattern is not None
    elsewhere = [layer for layer in range(32) if re.search(pattern[1], f"blk.{layer}.ffn_up_exps.weight")]
    assert elsewhere == list(range(4, 32))
    assert any("capacity by layer" in line for line in found.lost)
    assert any("placement layers 0-3" in line for line in found.lost)
    assert slots_per_layer(plan, MIXTRAL) == (28 * 4 + 4 * 8) / 32

"""Model shapes: totals against what authors state, and against transformers' modules, to the parameter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.plan.weights import WeightFormat
from engine.shapes import ModelShape, load_shape, shape_names
from engine.shapes.sizes import dense_bytes, head_bytes, kv_bytes, kv_bytes_per_token, layer_bytes
from tracekit.errors import PlanError, ShapeError

BF16, FP32, HQQ4 = (WeightFormat.parse(word) for word in ("bf16", "fp32", "hqq-4bit-g64"))

STATED_BILLIONS = {  # (all parameters, those one token uses) as the model cards and papers state them
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (141, 39),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen1.5-moe-a2.7b": (14.3, 2.7),
    "olmoe-1b-7b": (6.9, 1.3),
    "deepseek-v2-lite": (15.7, 2.4),
    "deepseek-v3": (671, 37),
    "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (116.8, 5.1),
    "qwen3-235b-a22b": (235, 22),
    "deepseek-r1": (671, 37),
    "phi-3.5-moe": (41.9, 6.6),
    "gemma-4-26b-a4b": (25.2, 3.8),
    # Of these the authors round the second figure to a whole billion, or count what is no text model.
    "qwen3-next-80b-a3b": (80, 3.87),
    "glm-4.5-air": (106, 12.8),
    "llama-4-scout": (107.8, 17.2),
    "granite-3.1-3b-a800m": (3.3, 0.88),
}


def test_the_shipped_shapes() -> None:
    assert set(shape_names()) == set(STATED_BILLIONS)
    assert all(
        load_shape(name).name == name and load_shape(name).source.startswith("https://") for name in shape_names()
    )


@pytest.mark.parametrize("name", STATED_BILLIONS)
def test_parameters_agree_with_the_stated_totals(name: str) -> None:
    shape = load_shape(name)
    total, active = STATED_BILLIONS[name]
    assert shape.total_params / 1e9 == pytest.approx(total, rel=0.01)
    # Authors count the input embedding among the active parameters or not; ours does not.
    embedding = shape.vocab_size * shape.hidden_size / 1e9
    close = pytest.approx(active, rel=0.025)
    assert shape.active_params / 1e9 == close or shape.active_params / 1e9 + embedding == close


def test_mixtral_experts_hold_nearly_everything() -> None:
    """Eliseev & Mazur 2023, section 2: 45.1 of 46.7 billion parameters are in experts."""
    shape = load_shape("mixtral-8x7b")
    assert shape.experts * len(shape.moe_layers) * shape.expert_params / 1e9 == pytest.approx(45.1, rel=0.001)
    assert shape.expert_bytes(BF16) == 3 * 4096 * 14336 * 2


NEWER = {  # what the public configuration of each says beside its sizes
    "qwen3-235b-a22b": {"model_type": "qwen3_moe", "head_dim": 128},
    "qwen3-next-80b-a3b": {"model_type": "qwen3_next", "shared_expert_intermediate_size": 512},
    "glm-4.5-air": {"model_type": "glm4_moe", "attention_bias": True, "head_dim": 128, "intermediate_size": 10944},
    "llama-4-scout": {"model_type": "llama4_text", "intermediate_size": 8192},
    "granite-3.1-3b-a800m": {"model_type": "granitemoe", "intermediate_size": 512},
    "phi-3.5-moe": {
        "model_type": "phimoe", "intermediate_size": 6400, "attention_bias": True, "lm_head_bias": True,
        "sliding_window": 131072,
    },
    "gemma-4-26b-a4b": {
        "model_type": "gemma4_text", "head_dim": 256, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
        "global_head_dim": 512, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True,
        "intermediate_size": 2112, "sliding_window": 1024, "top_k_experts": 8,
    },
}  # fmt: skip


def _transformers_config(shape: ModelShape) -> Any:
    """The transformers configuration of a shape, from the family's defaults and the shape's sizes."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own modules")
    common: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "vocab_size": shape.vocab_size,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "num_experts_per_tok": shape.top_k,
        "tie_word_embeddings": shape.tied_embeddings,
    }
    wide = shape.moe_intermediate_size
    if shape.name in NEWER:
        names = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), shape.experts)
        words: dict[str, Any] = (
            common | names | {"moe_intermediate_size": shape.moe_intermediate_size} | NEWER[shape.name]
        )
        return transformers.models.auto.configuration_auto.CONFIG_MAPPING[words.pop("model_type")](**words)
    if shape.name.startswith("mixtral"):
        return transformers.MixtralConfig(**common, intermediate_size=wide, num_local_experts=shape.experts)
    if shape.name.startswith("gpt-oss"):
        common |= {"head_dim": shape.head_dim, "num_local_experts": shape.experts}
        return transformers.GptOssConfig(**common, intermediate_size=wide)
    if shape.name.startswith("olmoe"):
        return transformers.OlmoeConfig(**common, intermediate_size=wide, num_experts=shape.experts)
    if shape.name.startswith("qwen3"):
        common |= {"head_dim": shape.head_dim, "num_experts": shape.experts}
        return transformers.Qwen3MoeConfig(**common, moe_intermediate_size=wide)
    if shape.name.startswith("qwen1.5"):
        shared = shape.shared_expert_intermediate_size
        common |= {"moe_intermediate_size": wide, "shared_expert_intermediate_size": shared}
        return transformers.Qwen2MoeConfig(**common, num_experts=shape.experts)
    assert shape.mla is not None
    family = transformers.DeepseekV2Config if shape.name == "deepseek-v2-lite" else transformers.DeepseekV3Config
    return family(
        **common,
        intermediate_size=shape.dense_intermediate_size,
        moe_intermediate_size=wide,
        n_routed_experts=shape.experts,
        n_shared_experts=shape.shared_expert_intermediate_size // wide,
        first_k_dense_replace=len(shape.dense_layers),
        q_lora_rank=shape.mla.query_rank or None,
        kv_lora_rank=shape.mla.key_value_rank,
        qk_nope_head_dim=shape.mla.nope_head_dim,
        qk_rope_head_dim=shape.mla.rope_head_dim,
        v_head_dim=shape.mla.value_head_dim,
    )


@pytest.mark.parametrize("name", STATED_BILLIONS)
def test_parameters_equal_transformers_modules(name: str) -> None:
    """The model built without memory (meta device) has exactly our parameters, experts and attention too."""
    torch = pytest.importorskip("torch", reason="compares with transformers' own modules")
    shape = load_shape(name)
    config = _transformers_config(shape)
    transformers: Any = pytest.importorskip("transformers")

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    # DeepSeek-V3's selection bias is learned, but not by gradient: transformers keeps it as a buffer.
    sizes |= {key: value.numel() for key, value in model.named_buffers() if key.endswith("e_score_correction_bias")}
    assert sum(sizes.values()) == shape.total_params
    layer = shape.moe_layers[0]
    experts = sum(size for key, size in sizes.items() if f"layers.{layer}." in key and ".experts." in key)
    assert experts == shape.experts * shape.expert_params
    for layer in range(shape.layers):
        own = [size for key, size in sizes.items() if re.search(rf"\blayers\.{layer}\.(self_attn|linear_attn)\.", key)]
        assert sum(own) == shape.attention_params(layer), layer


def test_transformers_default_mixtral_is_mixtral_8x7b() -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers' defaults")
    config, shape = transformers.MixtralConfig(), load_shape("mixtral-8x7b")
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (
        shape.layers, shape.hidden_size, shape.vocab_size,
    )  # fmt: skip
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (
        shape.experts, shape.top_k, shape.moe_intermediate_size,
    )  # fmt: skip


@pytest.mark.parametrize("name", STATED_BILLIONS)
def test_bytes_in_bf16_are_twice_the_parameters(name: str) -> None:
    """Layers, head and embedding add up to all parameters that are in no expert."""
    shape = load_shape(name)
    assert shape.expert_bytes(BF16) == 2 * shape.expert_params
    dense = shape.total_params - len(shape.moe_layers) * shape.experts * shape.expert_params
    assert dense_bytes(shape, BF16, BF16) == 2 * dense
    assert dense_bytes(shape, FP32, FP32) == 4 * dense
    layers = sum(layer_bytes(shape, layer, HQQ4, BF16) for layer in range(shape.layers))
    embedding = 0 if shape.tied_embeddings else 2 * shape.vocab_size * shape.hidden_size
    assert layers + head_bytes(shape, BF16) + embedding == dense_bytes(shape, HQQ4, BF16) < 2 * dense


@pytest.mark.parametrize("name", STATED_BILLIONS)
@pytest.mark.parametrize("word", ["hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit", "hqq-2bit-g16"])
def test_every_shipped_shape_fits_every_default_format(name: str, word: str) -> None:
    shape, weights = load_shape(name), WeightFormat.parse(word)
    matrices = shape.expert_params - sum(shape.expert_biases())
    expected = matrices * weights.bits_per_parameter / 8 + 2 * sum(shape.expert_biases())
    assert shape.expert_bytes(weights) == pytest.approx(expected, rel=0.001)
    layer_bytes(shape, 0, weights, BF16)


def test_key_value_cache() -> None:
    # Mixtral: key and value, 8 heads of 128, 32 layers, 2 bytes.
    assert kv_bytes_per_token(load_shape("mixtral-8x7b")) == 2 * 8 * 128 * 32 * 2
    assert kv_bytes_per_token(load_shape("mixtral-8x7b"), FP32) == 2 * 8 * 128 * 32 * 4
    assert kv_bytes_per_token(load_shape("mixtral-8x7b"), WeightFormat.parse("q8_0")) == 2 * 8 * 128 * 32 * 34 // 32
    # DeepSeek-V3 caches the latent: 512 + 64 values per layer (arXiv 2412.19437, section 2.1.1).
    assert kv_bytes_per_token(load_shape("deepseek-v3")) == (512 + 64) * 61 * 2
    # gpt-oss: every other layer sees 128 tokens; 8 heads of 64.
    per_layer = 2 * 8 * 64 * 2
    assert kv_bytes(load_shape("gpt-oss-20b"), 100) == 24 * per_layer * 100
    assert kv_bytes(load_shape("gpt-oss-20b"), 8192) == 12 * per_layer * (8192 + 128)
    # Qwen3-Next: 12 of 48 layers have a cache; the others one state of 32 x 128 x 128 in fp32 and a window of 4 x 8192.
    state = 36 * (32 * 128 * 128 * 4 + 4 * 8192 * 2)
    assert kv_bytes(load_shape("qwen3-next-80b-a3b"), 1000) == 12 * 2 * 2 * 256 * 2 * 1000 + state
    # Gemma 4: 25 layers of 8 heads of 256 see 1024 tokens, 5 of 2 heads of 512 see all.
    gemma = load_shape("gemma-4-26b-a4b")
    assert kv_bytes(gemma, 4096) == 25 * 2 * 8 * 256 * 2 * 1024 + 5 * 2 * 2 * 512 * 2 * 4096
    # Llama 4 Scout: three of four layers see their chunk of 8192.
    assert kv_bytes(load_shape("llama-4-scout"), 16384) == 2 * 8 * 128 * 2 * (36 * 8192 + 12 * 16384)
    with pytest.raises(PlanError, match="a key-value cache is not stored as hqq-4bit"):
        kv_bytes_per_token(load_shape("mixtral-8x7b"), HQQ4)


def test_layouts_of_one_expert() -> None:
    shape = msgspec.structs.replace(load_shape("olmoe-1b-7b"), has_expert_bias=True)
    fused = msgspec.structs.replace(shape, expert_layout="gated-fused")
    plain = msgspec.structs.replace(shape, expert_layout="plain")
    assert shape.expert_tensors() == ((1024, 2048), (1024, 2048), (2048, 1024))
    assert fused.expert_tensors() == ((2048, 2048), (2048, 1024))
    assert plain.expert_tensors() == ((1024, 2048), (2048, 1024))
    assert shape.expert_biases() == (1024, 1024, 2048)
    assert shape.expert_params == fused.expert_params > plain.expert_params


def test_layers_exist() -> None:
    shape = load_shape("deepseek-v3")
    assert shape.moe_layers == tuple(range(3, 61))
    for layer in (-1, 61):
        with pytest.raises(ShapeError, match="layers 0 to 60"):
            layer_bytes(shape, layer, BF16, BF16)


def test_a_wrong_name_suggests_the_right_one() -> None:
    with pytest.raises(ShapeError, match="did you mean 'mixtral-8x7b'"):
        load_shape("mixtral-7x8b")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top_k": 9}, "top_k 9 exceeds"),
        ({"top_k": 0}, ">= 1"),
        ({"experts": 1 << 40}, "<= 16777216"),
        ({"hiden_size": 1}, "did you mean 'hidden_size'"),
        ({"kv_heads": 5}, "no multiple of kv_heads"),
        ({"attention": '"mla"'}, "only then"),
        ({"attention": '"mha"'}, "Invalid enum value"),
        ({"dense_layers": "[0]"}, "given together"),
        ({"dense_layers": "[32]", "dense_intermediate_size": 8}, "below 32"),
        ({"dense_layers": "[1, 1]", "dense_intermediate_size": 8}, "different layers"),
        ({"dense_layers": str(list(range(32))), "dense_intermediate_size": 8}, "names every layer"),
    ],
)
def test_an_impossible_shape_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    table: dict[str, Any] = {
        "name": '"x"', "source": '""', "layers": 32, "hidden_size": 64, "vocab_size": 100, "experts": 8,
        "top_k": 2,
        "moe_intermediate_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 16,
    }  # fmt: skip
    path = tmp_path / "x.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in table.items()))
    assert load_shape(path).total_params > 0
    path.write_text("\n".join(f"{key} = {value}" for key, value in (table | change).items()))
    with pytest.raises(ShapeError, match=says) as caught:
        load_shape(path)
    assert "\n" not in str(caught.value)


def test_reading_shapes_and_hardware_imports_nothing_heavy() -> None:
    code = (
        "import sys; from engine.shapes import load_shape; from engine.hardware import load_hardware;"
        "load_shape('mixtral-8x7b'); load_hardware('t4');"
        "print([m for m in ('numpy', 'numba', 'polars', 'torch', 'typer') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

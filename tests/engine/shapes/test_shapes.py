"""Model shapes: totals against what authors state, and against transformers' modules, to the parameter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.plan.weights import WeightFormat
from engine.shapes import ModelShape, load_shape, shape_names
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
    family = {"deepseek-v2-lite": transformers.DeepseekV2Config, "deepseek-v3": transformers.DeepseekV3Config}
    return family[shape.name](
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
    experts = sum(size for key, size in sizes.items() if f"layers.{layer}.mlp.experts." in key)
    assert experts == shape.experts * shape.expert_params
    attention = sum(size for key, size in sizes.items() if f"layers.{layer}.self_attn." in key)
    assert attention == shape.attention_params


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
    """A decode step reads every dense parameter and one embedding row; layers and head add up to it."""
    shape = load_shape(name)
    assert shape.expert_bytes(BF16) == 2 * shape.expert_params
    per_token = shape.dense_params_per_token_bytes(BF16, BF16)
    assert per_token == 2 * (shape.dense_params_per_token + shape.hidden_size)
    assert shape.dense_params_per_token_bytes(FP32, FP32) == 2 * per_token
    parts = sum(shape.layer_bytes(layer, HQQ4, BF16) for layer in range(shape.layers)) + shape.head_bytes(BF16)
    assert parts + 2 * shape.hidden_size == shape.dense_params_per_token_bytes(HQQ4, BF16) < per_token


@pytest.mark.parametrize("name", STATED_BILLIONS)
@pytest.mark.parametrize("word", ["hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit", "hqq-2bit-g16"])
def test_every_shipped_shape_fits_every_default_format(name: str, word: str) -> None:
    shape, weights = load_shape(name), WeightFormat.parse(word)
    matrices = shape.expert_params - sum(shape.expert_biases())
    expected = matrices * weights.bits_per_parameter / 8 + 2 * sum(shape.expert_biases())
    assert shape.expert_bytes(weights) == pytest.approx(expected, rel=0.001)
    shape.layer_bytes(0, weights, BF16)


def test_key_value_cache() -> None:
    # Mixtral: key and value, 8 heads of 128, 32 layers, 2 bytes.
    assert load_shape("mixtral-8x7b").kv_bytes_per_token() == 2 * 8 * 128 * 32 * 2
    assert load_shape("mixtral-8x7b").kv_bytes_per_token("fp32") == 2 * 8 * 128 * 32 * 4
    # DeepSeek-V3 caches the latent: 512 + 64 values per layer (arXiv 2412.19437, section 2.1.1).
    assert load_shape("deepseek-v3").kv_bytes_per_token() == (512 + 64) * 61 * 2
    with pytest.raises(PlanError, match="not a format for the rest"):
        load_shape("mixtral-8x7b").kv_bytes_per_token("hqq-4bit")


def test_layouts_of_one_expert() -> None:
    shape = msgspec.structs.replace(load_shape("olmoe-1b-7b"), has_expert_bias=True)
    fused = msgspec.structs.replace(shape, expert_layout="gated-fused")
    plain = msgspec.structs.replace(shape, expert_layout="plain")
    assert shape.expert_tensors() == ((1024, 2048), (1024, 2048), (2048, 1024))
    assert fused.expert_tensors() == ((2048, 2048), (2048, 1024))
    assert plain.expert_tensors() == ((1024, 2048), (2048, 1024))
    assert shape.expert_biases() == (1024, 1024, 2048)
    assert shape.expert_params == fused.expert_params > plain.expert_params


def test_the_dense_part_is_not_quantised_and_layers_exist() -> None:
    shape = load_shape("deepseek-v3")
    assert shape.moe_layers == tuple(range(3, 61))
    with pytest.raises(PlanError, match="use bf16"):
        shape.dense_params_per_token_bytes(BF16, HQQ4)
    for layer in (-1, 61):
        with pytest.raises(ShapeError, match="layers 0 to 60"):
            shape.layer_bytes(layer, BF16, BF16)


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

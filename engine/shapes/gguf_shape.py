"""A model's shape from a GGUF's header, and how many bytes each part of it takes as that file stores it."""

import re
from collections import Counter
from typing import NamedTuple

from engine.shapes.config import shape_of_config
from engine.shapes.gguf import GgufHeader, Value
from engine.shapes.shape import ModelShape
from tracekit.errors import ShapeError, did_you_mean

# llama.cpp's word for an architecture -> transformers' model type. `llama` with experts is Mixtral.
_KINDS = {
    "llama": "mixtral", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next",
    "qwen35moe": "qwen3_5_moe_text", "olmoe": "olmoe", "deepseek2": "deepseek_v2", "gpt-oss": "gpt_oss",
    "glm4moe": "glm4_moe", "llama4": "llama4_text", "granitemoe": "granitemoe", "phimoe": "phimoe",
    "gemma4": "gemma4_text", "minimax-m2": "minimax_m2", "dots1": "dots1", "ernie4_5-moe": "ernie4_5_moe",
}  # fmt: skip
_KEYS = {  # our key of a configuration <- the header's, without the architecture
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "vocab_size": "vocab_size",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "sliding_window": "attention.sliding_window",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "full_attention_interval": "full_attention_interval",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
}
_EXPERT = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)")
_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID: DeepSeek-V3, not V2


class StoredParts(NamedTuple):
    """Bytes of a model's parts as files store them, and the types that hold most of them."""

    experts: int
    rest: int
    expert_types: dict[str, int]
    rest_types: dict[str, int]


def shape_of_gguf(header: GgufHeader, label: str) -> ModelShape:
    """The shape of the model in a GGUF. Raises ShapeError, one line that `label` opens."""
    values = header.values
    word = values.get("general.architecture")
    kind = _KINDS.get(word) if isinstance(word, str) else None
    if kind is None:
        guess = did_you_mean(str(word)[:64], _KINDS)
        raise ShapeError(
            f"{label}: architecture {str(word)[:64]!r} is none whose sizes are known{guess}; known: {', '.join(_KINDS)}"
        )
    if not values.get(f"{word}.expert_count"):
        raise ShapeError(f"{label}: a model without experts: there is nothing to offload by expert")
    config: dict[str, object] = {key: _one(values.get(f"{word}.{name}")) for key, name in _KEYS.items()}
    config = {key: value for key, value in config.items() if value is not None}
    config.setdefault("vocab_size", header.lengths.get("tokenizer.ggml.tokens"))
    names = {tensor.name for tensor in header.tensors}
    if names and not header.missing:
        config["tie_word_embeddings"] = "output.weight" not in names
    if kind == "deepseek_v2":
        config |= _latent(values, word)
        if values.get(f"{word}.expert_gating_func") == _SIGMOID or any("exp_probs_b" in name for name in names):
            kind = "deepseek_v3"
    if kind == "gemma4_text":
        config |= _gemma(values, word)
    if kind == "llama4_text":
        config |= {"attention_chunk_size": 8192, "intermediate_size_mlp": config.get("intermediate_size")}
        config["intermediate_size"] = config.get("moe_intermediate_size")
    if kind in ("qwen3_next", "qwen3_5_moe_text"):
        inner = values.get(f"{word}.ssm.inner_size")
        heads = config.get("linear_num_value_heads")
        if isinstance(inner, int) and isinstance(heads, int) and heads:
            config["linear_value_head_dim"] = inner // heads
    if kind == "glm4_moe":
        config["num_hidden_layers"] = _less(config.get("num_hidden_layers"), values.get(f"{word}.nextn_predict_layers"))
        config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in names
    config["attention_bias"] = "blk.0.attn_q.bias" in names and kind not in ("gpt_oss", "qwen2_moe")
    config["lm_head_bias"] = "output.bias" in names
    return shape_of_config(config | {"model_type": kind}, label)


def stored_parts(header: GgufHeader) -> StoredParts:
    """Bytes of the routed experts and of all else, as the file's tensors have them."""
    experts: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for tensor in header.tensors:
        (experts if _EXPERT.fullmatch(tensor.name) else rest)[tensor.type] += tensor.bytes
    return StoredParts(experts.total(), rest.total(), dict(experts.most_common()), dict(rest.most_common()))


def _one(value: Value) -> object:
    """A number; of a list by layer the largest, which is that of the layers with experts or attention."""
    return max(value, default=None) if isinstance(value, list) else value


def _less(layers: object, more: Value) -> object:
    """Layers without those that predict further tokens, which llama.cpp counts among them."""
    return layers - more if isinstance(layers, int) and isinstance(more, int) else layers


def _latent(values: dict[str, Value], word: object) -> dict[str, object]:
    """Sizes of latent attention: newer files keep those of its heads under `_mla`, older ones those of the cache."""
    rope = values.get(f"{word}.rope.dimension_count")
    key = values.get(f"{word}.attention.key_length_mla", values.get(f"{word}.attention.key_length"))
    value = values.get(f"{word}.attention.value_length_mla", values.get(f"{word}.attention.value_length"))
    nope = key - rope if isinstance(key, int) and isinstance(rope, int) else None
    return {"qk_rope_head_dim": rope, "qk_nope_head_dim": nope, "v_head_dim": value, "head_dim": None}


def _gemma(values: dict[str, Value], word: object) -> dict[str, object]:
    """Gemma 4: heads of windowed layers have sizes of their own, and both are lists by layer."""
    heads = values.get(f"{word}.attention.head_count_kv")
    pattern = values.get(f"{word}.attention.sliding_window_pattern")
    found: dict[str, object] = {
        "global_head_dim": values.get(f"{word}.attention.key_length"),
        "head_dim": values.get(f"{word}.attention.key_length_swa"),
        "hidden_size_per_layer_input": values.get(f"{word}.embedding_length_per_layer_input") or 0,
    }
    if isinstance(heads, list) and heads:
        found |= {"num_key_value_heads": max(heads), "num_global_key_value_heads": min(heads)}
        found["attention_k_eq_v"] = min(heads) != max(heads)
    if isinstance(pattern, list):
        found["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    return found

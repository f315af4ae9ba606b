"""Every family of the installed transformers that routes tokens to experts, and a tiny random model of each.

Nothing is listed by hand: a family is a package of `transformers.models` whose configuration speaks of experts.
A configuration is shrunk by what its fields are called; OVERRIDES holds the few that names alone cannot shrink.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 64
HIDDEN = 32
LAYERS = 3
EXPERTS = 8
TOP_K = 2

# By preference: what generates text, then what at least runs.
MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_MAPPING",
)
_ROUTING = re.compile(r"router|gate\.|bias|experts")
_MOE_FIELD = re.compile(r"expert|moe")
# The first pattern that matches a field's whole name says what the field becomes.
_RULES: tuple[tuple[str, Any], ...] = (
    (r"(.*_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"pad_token_id", 0),
    (r"eos_token_id", 1),
    (r"decoder_start_token_id", 0),
    (r"bos_token_id", None),
    (r".*_token_(id|index)", 2),
    (r".*(key_value|kv)_heads|kv_n_heads", 2),
    (r"num_.*heads|.*_n_heads|n_heads?|.*_heads", 4),
    (r"n_groups?|num_expert_group", 2),
    (r"topk_group", 1),
    (r"n_routed_experts|num_local_experts|num_experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts", TOP_K),
    (r"(n|num|moe_num)_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"num_sparse_.*layers", 2),
    (r"num_.*layers|n_layers?|(en|de)coder_layers|depth", LAYERS),
    (r"(en|de)coder_sparse_step|.*_sparse_step", 1),
    (r"(.*_)?hidden_size|d_model|dim|n_embd|embed_dim|hidden_dim|.*_hidden_dim", HIDDEN),
    (r".*intermediate_size|.*_?ffn_dim|d_ff|ffn_hidden_size|.*_intermediate_dim|expert_ffn_hidden_size", 16),
    (r".*_rank", 8),
    (r"index_head_dim", 16),
    (r"head_dim|.*_head_dim|d_kv", 8),
    (r"max_position_embeddings|n_positions|max_seq_len", 128),
    (r"sliding_window|.*window_size", 8),
    (r"initializer_range|init_std", 0.3),
)
_SPARSE = ["dense", "sparse", "sparse"]
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_NEMOTRON = {"layers_block_type": ["attention", "moe", "mamba", "moe"]}
# By field name, in whatever part of the configuration it is, or by "part.field".
OVERRIDES: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_ocr2": {"text_config.mlp_layer_types": _SPARSE},
    "deepseek_v2": {"head_dim": 8, "num_key_value_heads": 4},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"layer_types": ["indexed_attention"] * LAYERS},
    "ernie4_5_vl_moe": {"moe_intermediate_size": [16, 16], "text_config.rope_parameters": _MROPE},
    "flint": {"mlp_only_layers": [0]},
    "gemma4": {"num_kv_shared_layers": 0},
    "diffusion_gemma": {"num_kv_shared_layers": 0},
    "glm4v_moe": {"text_config.rope_parameters": _MROPE | {"mrope_section": [1, 1, 0]}},
    "glm5_next": {"qk_rope_head_dim": 0, "head_dim": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "attention"], "mamba_n_heads": 8, "mamba_d_state": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 4},
    "muse_spark": {
        "patch_sizes": (2, 2),
        "hidden_sizes": (16, 16),
        "depths": (1, 1),
        "audio_config.num_hidden_layers": 2,
    },
    "nemotron3_5_transcribe": _NEMOTRON,
    "nemotron_h": _NEMOTRON,
    "nemotron_h_omni": _NEMOTRON | {"video_temporal_patch_size": 2},
    "qwen4_exp": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 1,
    },
    "step3p7": {"sliding_window": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def packages() -> dict[str, list[str]]:
    """The model types of each family, by package: those whose configuration has fields about experts."""
    found: dict[str, list[str]] = {}
    for model_type in CONFIG_MAPPING:
        kind = CONFIG_MAPPING[model_type]
        try:
            config = kind()
        except Exception:  # a configuration without defaults
            continue
        if any(_MOE_FIELD.search(name) for name in _names(config)):
            found.setdefault(kind.__module__.split(".")[2], []).append(model_type)
    return found


def _names(config: PreTrainedConfig) -> Iterator[str]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _names(value)
        elif not name.startswith("_"):
            yield name


def shrunk(kind: type[PreTrainedConfig], overrides: dict[str, Any]) -> PreTrainedConfig:
    """A tiny configuration of a kind; `overrides` by field name, at any depth."""
    default = kind()
    given: dict[str, Any] = {}
    for field in fields(kind) if is_dataclass(kind) else ():
        name, value = field.name, vars(default).get(field.name)
        if name in overrides:
            given[name] = overrides[name]
        elif isinstance(value, PreTrainedConfig):
            inner = {key.removeprefix(f"{name}."): small for key, small in overrides.items()}
            given[name] = shrunk(type(value), inner)
        elif not name.startswith("_") and field.default is not MISSING:
            small = _small(name, field.default, default)
            if small is not field.default:
                given[name] = small
    return kind(**given)


def _small(name: str, value: Any, config: PreTrainedConfig) -> Any:
    if re.fullmatch("is_moe|enable_moe_block", name):
        return True
    if isinstance(value, bool):
        return value
    now = vars(config).get(name)
    if isinstance(now, list) and len(now) > LAYERS and all(isinstance(item, str) for item in now):
        kinds = list(dict.fromkeys(now))  # a layer of each kind, as far as there are layers
        return [kinds[min(layer, len(kinds) - 1)] for layer in range(LAYERS)]
    if not isinstance(value, int | float | None):
        return value
    if name in ("num_key_value_heads",) and value == vars(config).get("num_attention_heads"):
        return 4
    for pattern, small in _RULES:
        if re.fullmatch(pattern, name):
            # An option that is off by default stays off, but for what a model with experts cannot do without.
            needed = re.fullmatch(r".*token_id|.*experts(_per_tok)?|top_k_experts|moe_intermediate_size", name)
            return small if value is not None or needed else None
    return value


def model_class(types: list[str]) -> tuple[str, type[PreTrainedConfig], type[PreTrainedModel]]:
    """(mapping, configuration, model) of the first model type, by preference of what the model can do."""
    for mapping in MAPPINGS:
        models = getattr(modeling_auto, mapping)
        for model_type in reversed(types):  # text parts are registered after the whole
            kind = CONFIG_MAPPING[model_type]
            if kind in models:
                model = models[kind]
                return mapping, kind, model[0] if isinstance(model, list | tuple) else model
    raise LookupError("transformers has no model of it for text")


def build(package: str, types: list[str], seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family, in eval mode; biases and router weights that start at zero are made random."""
    _, kind, model = model_class(types)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model(shrunk(kind, OVERRIDES.get(package, {}))).eval()
        with torch.no_grad():
            for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
                if tensor.dtype == torch.long and tensor.shape[1:] == (TOP_K,):  # a table of experts by token
                    tensor.copy_(torch.rand(len(tensor), EXPERTS).argsort(-1)[:, :TOP_K])
                if _ROUTING.search(name) and tensor.is_floating_point() and not tensor.any():
                    tensor.normal_(std=0.3)
    if built.config.is_encoder_decoder and getattr(built.config, "decoder_start_token_id", None) is None:
        built.generation_config.decoder_start_token_id = 0
    return built

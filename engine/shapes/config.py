"""A model's shape from its `config.json`, without its weights and without transformers.

A configuration states sizes, but not what a family always has: whether experts have biases, queries are normalised, and
so on. `FAMILIES` holds that, and a test compares each of them with transformers' own modules, parameter for parameter.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.shapes.shape import ModelShape
from tracekit.errors import ShapeError, did_you_mean
from tracekit.opening import read_file

MOST_BYTES = 1 << 22
MOST_LAYERS = 1 << 12
T = TypeVar("T")

# What one family calls what another calls otherwise, by preference.
NAMES = {
    "layers": ("num_hidden_layers", "n_layers", "num_layers"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk", "num_experts_per_token"),
    "wide": ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", "ffn_hidden_size"),
    "shared": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "dense_first": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
}


@dataclass(frozen=True)
class Family:
    """What every model of a family has, beyond the sizes in its configuration: fields of `ModelShape`."""

    fields: dict[str, object] = field(default_factory=dict)
    wide: str = ""
    """The configuration's name for the size inside an expert, where it is not the first of `NAMES` that is there."""
    dense_wide: str = "intermediate_size"
    """Its name for the size inside a dense layer."""
    every_layer_dense_too: bool = False
    """Whether each layer computes a dense block beside its experts, which is then counted as a shared expert."""


_QK_NORM: dict[str, object] = {"query_key_norm": "head"}
_FUSED: dict[str, object] = {"expert_layout": "gated-fused"}
FAMILIES: dict[str, Family] = {
    "mixtral": Family(),
    "olmoe": Family({"query_key_norm": "full"}),
    "qwen2_moe": Family({"attention_bias": "qkv", "shared_expert_gate": True}),
    "qwen3_moe": Family(_QK_NORM),
    "qwen3_next": Family(_QK_NORM | {"attention_gate": True, "shared_expert_gate": True}),
    "qwen3_5_moe_text": Family(_QK_NORM | {"attention_gate": True, "shared_expert_gate": True}),
    "deepseek_v2": Family(),
    "deepseek_v3": Family({"router_bias": True}),
    "gpt_oss": Family(
        _FUSED | {"has_expert_bias": True, "router_bias": True, "attention_bias": "qkvo", "attention_sinks": True}
    ),
    "glm4_moe": Family({"router_bias": True}),
    "llama4_text": Family(_FUSED, wide="intermediate_size", dense_wide="intermediate_size_mlp"),
    "granitemoe": Family(_FUSED),
    "phimoe": Family({"norm_bias": True}),
    "gemma4_text": Family(_FUSED | _QK_NORM | {"norms": 7, "router_bias": True}, every_layer_dense_too=True),
    "minimax_m2": Family({"query_key_norm": "full", "router_bias": True}),
    "dots1": Family(_QK_NORM | {"router_bias": True}),
    "ernie4_5_moe": Family({"router_bias": True}),
    "flex_olmo": Family({"query_key_norm": "full"}),
}
# A multimodal model's text part, by the model type outside.
_OUTER = {"llama4": "llama4_text", "gemma4": "gemma4_text", "qwen3_5_moe": "qwen3_5_moe_text"}
_DENSE_TYPES = {"dense", "mlp"}
_WINDOWED, _RECURRENT = {"sliding_attention", "chunked_attention"}, {"linear_attention"}


def load_config_shape(path: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model whose `config.json`, or whose directory, is at `path`. Raises ShapeError, one line."""
    place = Path(path)
    place = place / "config.json" if place.is_dir() else place
    try:
        data = read_file(place, MOST_BYTES)
    except OSError as error:
        raise ShapeError(f"model configuration {place}: {error.strerror or error}") from None
    try:
        config = msgspec.json.decode(data, type=dict[str, object])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ShapeError(f"{place}: no JSON object of a model's configuration ({error})") from None
    return shape_of_config(config, str(place))


def shape_of_config(config: Mapping[str, object], label: str) -> ModelShape:
    """The shape that a model's configuration (the object in its `config.json`) means; `label` opens every error."""
    return _Reader(config, label).shape()


class _Reader:
    """One configuration being read."""

    def __init__(self, config: Mapping[str, object], label: str) -> None:
        self.label = label
        outer = config.get("model_type")
        if isinstance(config.get("text_config"), dict):
            inner = config["text_config"]
            assert isinstance(inner, dict)
            config = {key: value for key, value in config.items() if key == "tie_word_embeddings"} | inner
        kind = config.get("model_type", outer)
        kind = _OUTER.get(str(kind), kind)
        if not isinstance(kind, str) or kind not in FAMILIES:
            guess = did_you_mean(str(kind)[:64], FAMILIES)
            raise ShapeError(
                f"{label}: model type {str(kind)[:64]!r} is none whose sizes are known{guess or ''}; known: "
                f"{', '.join(FAMILIES)}; for others write a model shape's .toml"
            )
        self.config, self.kind, self.family = config, kind, FAMILIES[kind]

    def shape(self) -> ModelShape:
        config, family = self.config, self.family
        layers = self.size(*NAMES["layers"])
        if layers > MOST_LAYERS:
            raise ShapeError(f"{self.label}: {layers} layers are more than {MOST_LAYERS}")
        heads = self.size("num_attention_heads")
        hidden = self.size("hidden_size")
        wide = self.size(family.wide) if family.wide else self.size(*NAMES["wide"])
        dense = self.dense_layers(layers)
        windowed, recurrent = self.other_layers(layers)
        fields: dict[str, object] = {
            "name": Path(self.label).parent.name if self.label.endswith("config.json") else self.label,
            "source": self.label,
            "layers": layers,
            "dense_layers": dense,
            "hidden_size": hidden,
            "vocab_size": self.size("vocab_size"),
            "tied_embeddings": self.flag("tie_word_embeddings", self.kind.startswith("gemma")),
            "experts": self.size(*NAMES["experts"]),
            "top_k": self.size(*NAMES["top_k"]),
            "moe_intermediate_size": wide,
            "dense_intermediate_size": self.size(family.dense_wide) if dense else 0,
            "shared_expert_intermediate_size": self.shared(wide),
            "heads": heads,
            "kv_heads": self.size("num_key_value_heads", default=heads),
            "head_dim": self.size("head_dim", default=hidden // heads),
        }
        if config.get("kv_lora_rank"):
            fields |= self.latent()
        if self.flag("attention_bias", False):
            fields["attention_bias"] = "qkv" if self.kind == "glm4_moe" else "qkvo"
        if self.kind == "glm4_moe" and self.flag("use_qk_norm", False):
            fields["query_key_norm"] = "head"
        if self.flag("lm_head_bias", False):
            fields["head_bias"] = True
        if self.kind == "gemma4_text":
            fields |= self.gemma()
            if windowed is not None:
                windowed |= {"kv_heads": self.size("num_key_value_heads"), "head_dim": self.size("head_dim")}
        fields |= {"windowed": windowed, "recurrent": recurrent} | family.fields
        try:
            return msgspec.convert({key: value for key, value in fields.items() if value is not None}, ModelShape)
        except msgspec.ValidationError as error:
            raise ShapeError(f"{self.label}: {error}") from None

    # Layers

    def dense_layers(self, layers: int) -> list[int]:
        """Model layers without routed experts."""
        config = self.config
        if types := self.words("mlp_layer_types", layers):
            return [index for index, word in enumerate(types) if word in _DENSE_TYPES]
        routed = self.indices("moe_layers")
        if routed is not None:
            return sorted(set(range(layers)) - set(routed))
        first = self.size(*NAMES["dense_first"], default=0, least=0)
        every = self.size("interleave_moe_layer_step", "decoder_sparse_step", default=1)
        named = set(self.indices("mlp_only_layers") or ())
        last = config.get("moe_layer_end_index")
        end = last if isinstance(last, int) and last >= 0 else layers
        return [
            index for index in range(layers) if index < first or index > end or (index + 1) % every or index in named
        ]

    def other_layers(self, layers: int) -> tuple[dict[str, object] | None, dict[str, object] | None]:
        """The tables `windowed` and `recurrent` of the shape."""
        types = self.words("layer_types", layers) or self.implied_types(layers)
        windowed = [index for index, word in enumerate(types) if word in _WINDOWED]
        recurrent = [index for index, word in enumerate(types) if word in _RECURRENT]
        window = self.size("sliding_window", "attention_chunk_size", default=0, least=0)
        return (
            {"layers": windowed, "window": window} if windowed and window else None,
            self.linear_attention(recurrent) if recurrent else None,
        )

    def implied_types(self, layers: int) -> list[str]:
        """Types of layers where the configuration has a rule and no list, as hub files often do."""
        if self.kind == "gpt_oss":
            return ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(layers)]
        if self.kind in ("qwen3_next", "qwen3_5_moe_text"):
            every = self.size("full_attention_interval", default=4)
            return ["full_attention" if (index + 1) % every == 0 else "linear_attention" for index in range(layers)]
        if self.kind == "llama4_text" and self.config.get("attention_chunk_size"):
            every = self.size("no_rope_layer_interval", default=4)
            return ["full_attention" if (index + 1) % every == 0 else "chunked_attention" for index in range(layers)]
        if self.kind == "gemma4_text":
            every = self.size("sliding_window_pattern", default=6)
            full = {index for index in range(layers) if (index + 1) % every == 0} | {layers - 1}
            return ["full_attention" if index in full else "sliding_attention" for index in range(layers)]
        if self.kind in ("mixtral", "phimoe") and self.config.get("sliding_window"):
            return ["sliding_attention"] * layers
        return []

    def linear_attention(self, layers: list[int]) -> dict[str, object]:
        """Gated delta net (arXiv 2412.06464): its projections, and what a sequence keeps."""
        hidden = self.size("hidden_size")
        key_heads, value_heads = self.size("linear_num_key_heads"), self.size("linear_num_value_heads")
        key_dim, value_dim = self.size("linear_key_head_dim"), self.size("linear_value_head_dim")
        keys, values, kernel = key_heads * key_dim, value_heads * value_dim, self.size("linear_conv_kernel_dim")
        mixed = 2 * keys + values
        return {
            "layers": layers,
            "matrices": [[mixed + values, hidden], [2 * value_heads, hidden], [hidden, values]],
            "vector_params": mixed * kernel + 2 * value_heads + value_dim,
            # The state is kept in fp32, the convolution's window in 16 bits.
            "state_bytes": 4 * value_heads * key_dim * value_dim + 2 * mixed * kernel,
        }

    def latent(self) -> dict[str, object]:
        """Multi-head latent attention (arXiv 2405.04434)."""
        nope, rope = self.size("qk_nope_head_dim"), self.size("qk_rope_head_dim")
        return {
            "attention": "mla",
            "kv_heads": self.size("num_attention_heads"),
            "head_dim": nope + rope,
            "mla": {
                "query_rank": self.size("q_lora_rank", default=0, least=0),
                "key_value_rank": self.size("kv_lora_rank"),
                "nope_head_dim": nope,
                "rope_head_dim": rope,
                "value_head_dim": self.size("v_head_dim"),
            },
        }

    def gemma(self) -> dict[str, object]:
        """Gemma 4: its full layers have heads of their own, its router a scale per value of the hidden state."""
        fields: dict[str, object] = {
            "shared_expert_intermediate_size": self.size("intermediate_size"),
            "router_vector_params": self.size("hidden_size"),
            "shared_key_value": self.flag("attention_k_eq_v", False),
            "head_dim": self.size("global_head_dim", default=512),
        }
        kv_heads = self.size("num_key_value_heads")
        if fields["shared_key_value"]:
            fields["kv_heads"] = self.size("num_global_key_value_heads", default=kv_heads)
        for layer in self.tables("per_layer_config"):  # what transformers writes in place of the two global keys
            fields["head_dim"] = layer.get("head_dim", fields["head_dim"])
            fields["kv_heads"] = layer.get("num_key_value_heads", fields.get("kv_heads", kv_heads))
        if self.size("hidden_size_per_layer_input", default=0, least=0):
            raise ShapeError(
                f"{self.label}: inputs per layer (hidden_size_per_layer_input) are not counted: write a .toml"
            )
        return fields

    def shared(self, wide: int) -> int:
        """Intermediate size of a layer's shared experts together."""
        if self.kind == "llama4_text":
            return wide  # one beside the routed ones, always
        if size := self.size("shared_expert_intermediate_size", default=0, least=0):
            return size
        return wide * self.size(*NAMES["shared"], default=0, least=0)

    # Values

    def size(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of the keys that is there and not null, a whole number of at least `least`."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 24:
                raise ShapeError(
                    f"{self.label}: {name} = {str(value)[:64]} is no whole number from {least} to {1 << 24}"
                )
            return value
        if default is None:
            raise ShapeError(f"{self.label}: lacks {' or '.join(names)}, which a {self.kind} model's configuration has")
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise ShapeError(f"{self.label}: {name} = {str(value)[:64]} is neither true nor false")
        return bool(value)

    def words(self, name: str, count: int) -> list[str]:
        value = self.config.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) != count or not all(isinstance(word, str) for word in value):
            raise ShapeError(f"{self.label}: {name} is no list of {count} words, one for each layer")
        return value

    def tables(self, name: str) -> list[dict[str, object]]:
        value = self.config.get(name)
        return [one for one in value.values() if isinstance(one, dict)] if isinstance(value, dict) else []

    def indices(self, name: str) -> list[int] | None:
        value = self.config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(index, int) and 0 <= index < MOST_LAYERS for index in value
        ):
            raise ShapeError(f"{self.label}: {name} is no list of layers")
        return value

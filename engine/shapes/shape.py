"""ModelShape: the sizes in a model's public configuration, and the parameters and bytes that follow."""

import os
from typing import Annotated, Literal

import msgspec

from engine.plan.weights import WeightFormat
from tracekit import named_toml
from tracekit.errors import PlanError, ShapeError

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
SizeOrNone = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
Matrix = tuple[int, int]


class MlaRanks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    query_rank: SizeOrNone
    """Rank of the query projection; 0 for a full one."""
    key_value_rank: Size
    """Size of the latent that keys and values are rebuilt from."""
    nope_head_dim: Size
    """Query and key values per head without position."""
    rope_head_dim: Size
    """Query and key values per head with rotary position; the key's are shared by all heads."""
    value_head_dim: Size


class ModelShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes of a decoder-only mixture-of-experts transformer. Matrices are (output rows, input columns)."""

    name: str
    source: str
    """URL of the public configuration the sizes come from."""
    layers: Size
    """All transformer layers."""
    dense_layers: tuple[SizeOrNone, ...] = ()
    """Indices of the layers without routed experts."""
    hidden_size: Size
    vocab_size: Size
    tied_embeddings: bool = False
    """Whether the output head is the input embedding."""

    experts: Size
    """Routed experts per MoE layer."""
    top_k: Size
    """Routed experts per token and MoE layer."""
    moe_intermediate_size: Size
    expert_layout: Literal["gated", "gated-fused", "plain"] = "gated"
    """gated: gate, up, down; gated-fused: gate and up as one matrix (gpt-oss), down; plain: up, down."""
    has_expert_bias: bool = False
    router_bias: bool = False
    """Whether the router adds one learned value per expert (to its logits, or only when it selects)."""
    dense_intermediate_size: SizeOrNone = 0
    """Intermediate size of the layers in `dense_layers`."""
    shared_expert_intermediate_size: SizeOrNone = 0
    """Intermediate size of all shared experts of a layer together; 0 if it has none."""
    shared_expert_gate: bool = False
    """Whether a learned gate scales the shared expert (Qwen1.5-MoE)."""

    attention: Literal["gqa", "mla"] = "gqa"
    heads: Size
    kv_heads: Size
    head_dim: Size
    """Values per query and key head (mla: nope + rope)."""
    mla: MlaRanks | None = None
    attention_bias: Literal["none", "qkv", "qkvo"] = "none"
    attention_sinks: bool = False
    """Whether every head has a learned sink logit (gpt-oss)."""
    query_key_norm: Literal["none", "head", "full"] = "none"
    """Whether queries and keys are normalised, with a weight per value of a head, or of all heads."""

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} exceeds the {self.experts} experts of a layer")
        if len(set(self.dense_layers)) != len(self.dense_layers) or any(i >= self.layers for i in self.dense_layers):
            raise ValueError(f"dense_layers must be different layers below {self.layers}")
        if len(self.dense_layers) == self.layers:
            raise ValueError("dense_layers names every layer; a mixture-of-experts model has at least one MoE layer")
        if bool(self.dense_layers) != bool(self.dense_intermediate_size):
            raise ValueError("dense_layers and dense_intermediate_size are given together or not at all")
        if (self.attention == "mla") != (self.mla is not None):
            raise ValueError("the table [mla] is given with attention = 'mla' and only then")
        if self.mla is not None and self.head_dim != self.mla.nope_head_dim + self.mla.rope_head_dim:
            raise ValueError("with attention = 'mla', head_dim is nope_head_dim + rope_head_dim")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Model-layer index of each MoE layer."""
        dense = set(self.dense_layers)
        return tuple(layer for layer in range(self.layers) if layer not in dense)

    # Routed experts

    def expert_tensors(self) -> tuple[Matrix, ...]:
        """The matrices (rows, columns) of one routed expert, as they are stored and quantised."""
        wide, down = (
            (self.moe_intermediate_size, self.hidden_size),
            (self.hidden_size, self.moe_intermediate_size),
        )
        if self.expert_layout == "gated-fused":
            return (2 * wide[0], wide[1]), down
        return (wide, wide, down) if self.expert_layout == "gated" else (wide, down)

    def expert_biases(self) -> tuple[int, ...]:
        """Lengths of the biases of one routed expert, one per matrix; () when it has none."""
        return tuple(rows for rows, _ in self.expert_tensors()) if self.has_expert_bias else ()

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert."""
        return _count(self.expert_tensors()) + sum(self.expert_biases())

    def expert_bytes(self, weight_format: WeightFormat) -> int:
        """Bytes of one routed expert stored as `weight_format`; PlanError when a matrix does not fit it."""
        return weight_format.expert_bytes(self)

    # Everything else

    def attention_tensors(self) -> tuple[Matrix, ...]:
        """The projection matrices (rows, columns) of one layer's attention."""
        if self.mla is None:
            queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
            hidden = self.hidden_size
            return (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)
        ranks, queries = self.mla, self.heads * self.head_dim
        query: tuple[Matrix, ...] = ((queries, self.hidden_size),)
        if ranks.query_rank:
            query = (ranks.query_rank, self.hidden_size), (queries, ranks.query_rank)
        return (
            *query,
            (ranks.key_value_rank + ranks.rope_head_dim, self.hidden_size),
            (self.heads * (ranks.nope_head_dim + ranks.value_head_dim), ranks.key_value_rank),
            (self.hidden_size, self.heads * ranks.value_head_dim),
        )

    @property
    def attention_vector_params(self) -> int:
        """Parameters of one layer's attention that are no matrices: biases, sinks, norms inside it."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = {"none": 0, "qkv": queries + 2 * keys, "qkvo": queries + 2 * keys + self.hidden_size}
        norm = {"none": 0, "head": 2 * self.head_dim, "full": queries + keys}
        latent = self.mla.query_rank + self.mla.key_value_rank if self.mla is not None else 0
        sinks = self.heads if self.attention_sinks else 0
        return bias[self.attention_bias] + norm[self.query_key_norm] + latent + sinks

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention."""
        return _count(self.attention_tensors()) + self.attention_vector_params

    def other_params(self, layer: int) -> int:
        """Parameters of model layer `layer` outside attention and routed experts.

        Two norms and a dense feed-forward block, or two norms, the router and the shared experts.
        """
        self._check_layer(layer)
        norms = 2 * self.hidden_size
        if layer in self.dense_layers:
            return norms + 3 * self.hidden_size * self.dense_intermediate_size
        router = self.hidden_size * self.experts + (self.experts if self.router_bias else 0)
        shared = 3 * self.hidden_size * self.shared_expert_intermediate_size
        return norms + router + shared + (self.hidden_size if self.shared_expert_gate else 0)

    @property
    def head_params(self) -> int:
        """Parameters read once a step to make logits: the final norm and the output head (tied or not)."""
        return self.hidden_size + self.vocab_size * self.hidden_size

    @property
    def dense_params_per_token(self) -> int:
        """Parameters that a decode step reads whatever its routing, for two operations per token each.

        Attention, norms, routers, shared experts, dense layers, final norm and output head. Of the input
        embedding a step reads one row per token, which is not counted here.
        """
        return sum(self.attention_params + self.other_params(layer) for layer in range(self.layers)) + self.head_params

    @property
    def total_params(self) -> int:
        """All parameters, embeddings included, multi-token-prediction heads not."""
        embedding = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.dense_params_per_token + embedding + len(self.moe_layers) * self.experts * self.expert_params

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: `dense_params_per_token` and `top_k` experts of every MoE layer."""
        return self.dense_params_per_token + len(self.moe_layers) * self.top_k * self.expert_params

    # Bytes

    def layer_bytes(self, layer: int, attention: WeightFormat, dense: WeightFormat) -> int:
        """Bytes of model layer `layer` without its routed experts.

        Attention matrices are stored as `attention`, the rest as `dense`; PlanError if `dense` is quantised.
        """
        width = _plain(dense)
        matrices = attention.matrices_bytes(self.attention_tensors())
        return matrices + (self.attention_vector_params + self.other_params(layer)) * width

    def head_bytes(self, dense: WeightFormat) -> int:
        """Bytes of the final norm and the output head. PlanError when `dense` is quantised."""
        return self.head_params * _plain(dense)

    def dense_params_per_token_bytes(self, attention: WeightFormat, dense: WeightFormat) -> int:
        """Bytes a one-token decode step must read besides routed experts and the key-value cache.

        Every layer's `layer_bytes`, `head_bytes`, and one row of the input embedding.
        """
        layers = sum(self.layer_bytes(layer, attention, dense) for layer in range(self.layers))
        return layers + self.head_bytes(dense) + self.hidden_size * _plain(dense)

    def kv_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Bytes one token adds to the key-value cache over all layers; each later step reads them again.

        gqa: a key and a value per kv head; mla: the latent and the shared rotary key, as it is cached.
        Sliding windows (gpt-oss: every other layer) are not modelled; past one this is an upper bound.
        """
        if self.mla is not None:
            values = self.mla.key_value_rank + self.mla.rope_head_dim
        else:
            values = 2 * self.kv_heads * self.head_dim
        return self.layers * values * _plain(WeightFormat.parse(dtype))

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.layers:
            raise ShapeError(f"{self.name} has layers 0 to {self.layers - 1}; there is no layer {layer}")


def _count(matrices: tuple[Matrix, ...]) -> int:
    return sum(rows * cols for rows, cols in matrices)


def _plain(dense: WeightFormat) -> int:
    if dense.quantised:
        raise PlanError(
            f"only experts and attention are quantised; {dense.name} is not a format for the rest (use bf16)"
        )
    return dense.plain_bytes


def shape_names() -> tuple[str, ...]:
    """Names of the shipped model shapes, sorted."""
    return named_toml.names("engine.shapes", "models")


def load_shape(name_or_path: str | os.PathLike[str]) -> ModelShape:
    """A shipped shape by name, or a user's TOML file by path. ShapeError, one line, for anything else."""
    return named_toml.load(
        name_or_path,
        ModelShape,
        what="model shape",
        package="engine.shapes",
        folder="models",
        error=ShapeError,
    )

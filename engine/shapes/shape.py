"""ModelShape: the sizes in a model's public configuration, and the parameters and bytes that follow."""

from typing import Annotated, Literal

import msgspec

from engine.plan.weights import WeightFormat
from tracekit.errors import ShapeError

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


class Windowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layers whose tokens see only the last `window` tokens (or those of their chunk), which is all they cache."""

    layers: tuple[SizeOrNone, ...]
    window: Size
    kv_heads: SizeOrNone = 0
    """Of these layers, where they have others than the rest; 0 for the same."""
    head_dim: SizeOrNone = 0
    """Likewise."""


class Recurrent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layers that keep a state of fixed size for each sequence in place of a key-value cache (linear attention)."""

    layers: tuple[SizeOrNone, ...]
    matrices: tuple[Matrix, ...]
    """The projections (rows, columns) of one layer."""
    vector_params: SizeOrNone = 0
    """Parameters of one layer that are no matrices: convolutions, decays, norms inside it."""
    state_bytes: SizeOrNone
    """What one sequence's state takes in one layer, in the type the model keeps it."""


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
    attention_gate: bool = False
    """Whether the query projection makes a gate for its output, too (Qwen3-Next)."""
    shared_key_value: bool = False
    """Whether a layer's values are its keys, without a projection of their own; not in `windowed` layers."""
    windowed: Windowed | None = None
    recurrent: Recurrent | None = None

    norms: Annotated[int, msgspec.Meta(ge=0, le=16)] = 2
    """Norms of a layer outside its attention, each a weight per value of the hidden state."""
    norm_bias: bool = False
    """Whether every norm of the hidden state has a bias as well."""
    head_bias: bool = False
    router_vector_params: SizeOrNone = 0
    """Parameters of a router beside its matrix and the values per expert of `router_bias`."""

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
        other: list[int] = []
        for name, kind in (("windowed", self.windowed), ("recurrent", self.recurrent)):
            if kind is not None:
                other += kind.layers
                if any(index >= self.layers for index in kind.layers):
                    raise ValueError(f"{name}.layers must be below {self.layers}")
        if len(set(other)) != len(other):
            raise ValueError("windowed.layers and recurrent.layers must be different layers")

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

    def attention_tensors(self, layer: int = 0) -> tuple[Matrix, ...]:
        """The projection matrices (rows, columns) of model layer `layer`'s attention, or what stands in its place."""
        if self.recurrent is not None and layer in self.recurrent.layers:
            return self.recurrent.matrices
        if self.mla is None:
            kv_heads, head_dim = self.key_value_heads(layer)
            queries, keys, hidden = self.heads * head_dim, kv_heads * head_dim, self.hidden_size
            gated = 2 * queries if self.attention_gate else queries
            values = () if self._shares(layer) else ((keys, hidden),)
            return (gated, hidden), (keys, hidden), *values, (hidden, queries)
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

    def attention_vector_params(self, layer: int = 0) -> int:
        """Parameters of model layer `layer`'s attention that are no matrices: biases, sinks, norms inside it."""
        if self.recurrent is not None and layer in self.recurrent.layers:
            return self.recurrent.vector_params
        kv_heads, head_dim = self.key_value_heads(layer)
        queries, keys = self.heads * head_dim, kv_heads * head_dim
        bias = {"none": 0, "qkv": queries + 2 * keys, "qkvo": queries + 2 * keys + self.hidden_size}
        norm = {"none": 0, "head": 2 * head_dim, "full": queries + keys}
        latent = self.mla.query_rank + self.mla.key_value_rank if self.mla is not None else 0
        sinks = self.heads if self.attention_sinks else 0
        return bias[self.attention_bias] + norm[self.query_key_norm] + latent + sinks

    def key_value_heads(self, layer: int) -> tuple[int, int]:
        """Key and value heads of model layer `layer`, and values per head."""
        other = self.windowed
        if other is None or layer not in other.layers:
            return self.kv_heads, self.head_dim
        return other.kv_heads or self.kv_heads, other.head_dim or self.head_dim

    def _shares(self, layer: int) -> bool:
        return self.shared_key_value and (self.windowed is None or layer not in self.windowed.layers)

    def attention_params(self, layer: int = 0) -> int:
        """Parameters of model layer `layer`'s attention."""
        return _count(self.attention_tensors(layer)) + self.attention_vector_params(layer)

    def other_tensors(self, layer: int) -> tuple[Matrix, ...]:
        """The matrices (rows, columns) of model layer `layer` outside attention and routed experts.

        A dense feed-forward block, or the router and the shared experts.
        """
        self.check_layer(layer)
        hidden, wide = self.hidden_size, self.dense_intermediate_size
        if layer in self.dense_layers:
            return (wide, hidden), (wide, hidden), (hidden, wide)
        shared = self.shared_expert_intermediate_size
        block = ((shared, hidden), (shared, hidden), (hidden, shared)) if shared else ()
        return (self.experts, hidden), *block

    def other_vector_params(self, layer: int) -> int:
        """Parameters of model layer `layer` that are in no matrix, outside attention and routed experts."""
        self.check_layer(layer)
        norms = self.norms * self._norm_params
        if layer in self.dense_layers:
            return norms
        gate = self.hidden_size if self.shared_expert_gate else 0
        return norms + (self.experts if self.router_bias else 0) + gate + self.router_vector_params

    def other_params(self, layer: int) -> int:
        """Parameters of model layer `layer` outside attention and routed experts."""
        return _count(self.other_tensors(layer)) + self.other_vector_params(layer)

    @property
    def _norm_params(self) -> int:
        return self.hidden_size * (2 if self.norm_bias else 1)

    @property
    def head_params(self) -> int:
        """Parameters read once a step to make logits: the final norm and the output head (tied or not)."""
        return self.head_vector_params + self.vocab_size * self.hidden_size

    @property
    def head_vector_params(self) -> int:
        """Those of them that are in no matrix."""
        return self._norm_params + (self.vocab_size if self.head_bias else 0)

    @property
    def dense_params_per_token(self) -> int:
        """Parameters that a decode step reads whatever its routing, for two operations per token each.

        Attention, norms, routers, shared experts, dense layers, final norm and output head. Of the input
        embedding a step reads one row per token, which is not counted here.
        """
        return (
            sum(self.attention_params(layer) + self.other_params(layer) for layer in range(self.layers))
            + self.head_params
        )

    @property
    def total_params(self) -> int:
        """All parameters, embeddings included, multi-token-prediction heads not."""
        embedding = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.dense_params_per_token + embedding + len(self.moe_layers) * self.experts * self.expert_params

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: `dense_params_per_token` and `top_k` experts of every MoE layer."""
        return self.dense_params_per_token + len(self.moe_layers) * self.top_k * self.expert_params

    def check_layer(self, layer: int) -> None:
        """Raise ShapeError unless model layer `layer` exists."""
        if not 0 <= layer < self.layers:
            raise ShapeError(f"{self.name} has layers 0 to {self.layers - 1}; there is no layer {layer}")


def _count(matrices: tuple[Matrix, ...]) -> int:
    return sum(rows * cols for rows, cols in matrices)

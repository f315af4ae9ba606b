"""Bytes that follow from a model's shape and the formats its weights and its key-value cache are stored in."""

from engine.plan.weights import WeightFormat
from engine.shapes.shape import ModelShape

STATED = WeightFormat.parse("bf16")
"""The format of what no plan says otherwise of."""


def layer_bytes(shape: ModelShape, layer: int, attention: WeightFormat, dense: WeightFormat) -> int:
    """Bytes of model layer `layer` without its routed experts; each matrix in its part's format."""
    matrices = attention.matrices_bytes(shape.attention_tensors(layer)) + dense.matrices_bytes(
        shape.other_tensors(layer)
    )
    vectors = shape.attention_vector_params(layer) + shape.other_vector_params(layer)
    return matrices + vectors * dense.plain_bytes


def head_bytes(shape: ModelShape, dense: WeightFormat) -> int:
    """Bytes of the final norm and the output head, which every step reads."""
    return dense.tensor_bytes(shape.vocab_size, shape.hidden_size) + shape.head_vector_params * dense.plain_bytes


def dense_bytes(shape: ModelShape, attention: WeightFormat, dense: WeightFormat) -> int:
    """Bytes of all that is no routed expert, embeddings included: what stays in device memory whatever is routed."""
    layers = sum(layer_bytes(shape, layer, attention, dense) for layer in range(shape.layers))
    embedding = 0 if shape.tied_embeddings else dense.tensor_bytes(shape.vocab_size, shape.hidden_size)
    return layers + head_bytes(shape, dense) + embedding


def experts_bytes(shape: ModelShape, experts: WeightFormat) -> int:
    """Bytes of all routed experts."""
    return len(shape.moe_layers) * shape.experts * shape.expert_bytes(experts)


def key_value_values(shape: ModelShape, layer: int) -> int:
    """Values that one token adds to the key-value cache of model layer `layer`.

    A key and a value per key-value head; with latent attention the latent and the rotary key that all heads share
    (DeepSeek-V2, arXiv 2405.04434, section 2.1.2); nothing where a layer keeps a state instead.
    """
    shape.check_layer(layer)
    if shape.recurrent is not None and layer in shape.recurrent.layers:
        return 0
    if shape.mla is not None:
        return shape.mla.key_value_rank + shape.mla.rope_head_dim
    heads, values = shape.key_value_heads(layer)
    return 2 * heads * values


def kv_bytes_per_token(shape: ModelShape, stored: WeightFormat = STATED) -> int:
    """Bytes that one token adds to the key-value cache over all layers, and that each later step reads of it.

    In layers with a window it holds for tokens inside it: beyond, older ones are dropped.
    """
    return sum(stored.values_bytes(key_value_values(shape, layer)) for layer in range(shape.layers))


def kv_bytes(shape: ModelShape, context: int, stored: WeightFormat = STATED) -> int:
    """Bytes of one sequence's key-value cache with `context` tokens, its recurrent layers' states included."""
    total = 0
    for layer in range(shape.layers):
        windowed = shape.windowed is not None and layer in shape.windowed.layers
        tokens = min(context, shape.windowed.window) if windowed and shape.windowed is not None else context
        total += tokens * stored.values_bytes(key_value_values(shape, layer))
    if shape.recurrent is not None:
        total += len(shape.recurrent.layers) * shape.recurrent.state_bytes
    return total

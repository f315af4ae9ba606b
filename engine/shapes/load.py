"""Device memory that sequences take beside weights: their key-value cache and what a step computes with."""

from typing import NamedTuple

from engine.plan.weights import WeightFormat
from engine.shapes.shape import ModelShape
from engine.shapes.sizes import kv_bytes


class Load(NamedTuple):
    """What is held and computed at once."""

    context: int
    """Tokens of each sequence when it is longest."""
    sequences: int
    """Decoded at once."""
    step_tokens: int
    """Of the largest prefill step."""
    prompt: int
    """Tokens of each sequence when that step is over."""


ALONE = Load(1, 1, 1, 1)
"""One token: the least there can be."""


def load_bytes(shape: ModelShape, load: Load, kv: WeightFormat, width: int = 2) -> tuple[int, int]:
    """Bytes of the key-value cache at its fullest, and of activations at the peak beside it; `width` bytes a value.

    A prompt's step takes more than a token's, but the cache is shorter then: what counts is the larger sum.
    """
    full = load.sequences * kv_bytes(shape, load.context, kv)
    reading = load.sequences * kv_bytes(shape, load.prompt, kv) + prefill_bytes(shape, load, width)
    return full, max(decode_bytes(shape, load, width), reading - full)


def prefill_bytes(shape: ModelShape, load: Load, width: int = 2) -> int:
    """The most that the largest step's tensors take at a time, `width` bytes a value, attention keeping no scores.

    Of every token the residual and its norm beside queries, keys and values before and after they are turned, keys and
    values repeated for every head, and what attention gives, twice; or beside the step's input, the sum of experts and
    those of their outputs that wait to be added, and what goes into the expert at work, is inside it and comes out,
    whichever is more. That expert is taken to be the busiest, with twice its even share of the choices. Of the last
    token of each sequence its logits. Counted on transformers' eager modules; kernels that fuse take less.
    """
    hidden, queries, keys = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 4 * queries + 3 * keys + (2 * queries if shape.heads != shape.kv_heads else 0)
    if shape.query_key_norm != "none":
        attention += queries
    dense = 2 * hidden + 3 * shape.dense_intermediate_size
    most = max(attention, dense, _experts_values(shape, width)) + 2 * hidden
    return width * (load.step_tokens * most + load.sequences * shape.vocab_size)


def _experts_values(shape: ModelShape, width: int) -> int:
    """Of every token, where a MoE layer computes its experts, in values of `width` bytes."""
    hidden, busiest = shape.hidden_size, min(2 / shape.experts, 1 / shape.top_k)
    waiting = shape.top_k * (1 - busiest) * hidden
    at_work = shape.top_k * busiest * (2 * hidden + 3 * shape.moe_intermediate_size)
    turning, gate = 2 * shape.head_dim, shape.experts
    chosen = shape.top_k * (8 + 2 * 8) / width  # whole numbers: which experts, and of what is sorted by them
    return int(3 * hidden + waiting + at_work + turning + gate + chosen)


def decode_bytes(shape: ModelShape, load: Load, width: int = 2) -> int:
    """The same of a decode step: one layer's keys or values a second time, while they grow, and the logits."""
    one = prefill_bytes(shape, load._replace(step_tokens=load.sequences), width)
    return one + width * load.sequences * load.context * shape.kv_heads * shape.head_dim

"""The figures of a trace, as `tracekit info` prints them."""

import msgspec

from tracekit.stats.drift import Shift
from tracekit.stats.prediction import CrossLayer
from tracekit.stats.speculation import Recall


class LayerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One MoE layer; distances and working sets as in `tracekit.stats.locality`."""

    layer: int  # model-layer index
    experts_used: int
    load: list[int]  # times each expert was chosen
    load_entropy: float | None
    reuse_distance: dict[str, int | None]  # by quantile
    first_uses: int
    working_set: dict[int, float]  # mean distinct experts by window, in tokens


class TraceStats(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of `tracekit info`. Bytes are those of experts as stored where the trace was taken."""

    model: str
    source: str
    digest: str
    complete: bool
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    requests: int
    requests_told_apart: bool
    steps: int
    decode_steps: int
    layers: int
    experts_per_layer: tuple[int, int]  # fewest, most
    top_k: int
    lookups: int  # distinct experts per visit (step, layer), summed
    distinct_per_decode_visit: float | None
    distinct_per_prefill_visit: float | None
    expert_bytes: tuple[int, int] | None  # smallest, largest expert
    model_expert_bytes: int | None  # all experts of all MoE layers
    token_cycle_experts: float
    token_cycle_bytes: int | None
    experts_used: int
    experts_total: int
    load_entropy_mean: float | None
    load_entropy_min: float | None
    load_entropy_min_layer: int | None  # model-layer index
    overlap: float | None
    overlap_error: float  # standard error of `overlap`
    overlap_chance: float | None
    reuse_distance: dict[str, int | None]  # by quantile, over all layers
    first_use_share: float | None  # of all choices, those of an expert not chosen before
    working_set: dict[int, float]  # mean distinct experts per layer by window, in tokens
    cross_layer: CrossLayer | None
    lookahead_recall: list[Recall]
    domain_shift: Shift | None
    by_layer: list[LayerStats]
    recorded: list[str]  # what the trace carries besides routing
    notes: list[str]
    warnings: list[str]

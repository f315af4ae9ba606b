"""What a trace is like, before any policy: how much it demands, how evenly, with how much locality."""

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

_CHUNK = 1 << 20  # lookups looked at at once
_SAMPLED_LOOKUPS = 1 << 25  # overlap is measured on about this many; beyond, its error is far below a percent
_FEW_TOKENS = 64
_FEW_PAIRS = 32


class TraceStats(msgspec.Struct, frozen=True, kw_only=True):
    """The figures `tracekit info` prints. Bytes are those of experts as stored where the trace was taken."""

    model: str
    source: str
    digest: str
    complete: bool
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    requests: int
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
    overlap_chance: float | None
    recorded: list[str]  # what the trace carries besides routing
    notes: list[str]
    warnings: list[str]


def describe(trace: Trace) -> TraceStats:
    """Measure `trace`.

    Token cycle: the experts, and their bytes, that one decode token demands over all layers (mean over decode
    tokens, or over all tokens when there are none). A global LRU cache smaller than this never hits.

    Load entropy: the Shannon entropy of a layer's load over its experts, divided by the logarithm of their
    number; 1 is perfectly even, 0 is one expert.

    Overlap: the share of a decode token's experts that the decode token before it, of the same request, chose
    at the same layer. `overlap_chance` is that share for any two decode tokens of the trace, so popularity
    alone makes no difference between the two. Of very long traces a regular sample is taken; a note says so.
    """
    manifest = trace.manifest
    decode = trace.phase == DECODE
    load_decode = _loads(trace, decode)
    load = load_decode + _loads(trace, ~decode)
    entropy = _entropy(load, manifest.experts_per_layer)
    notes = list(manifest.notes)
    overlap, error = _overlap(trace, decode, notes)
    chance = _chance(load_decode, int(decode.sum()))
    counts, decode_steps = _distinct_per_visit(trace, decode)

    some = load_decode if decode.any() else load
    per_layer = some.sum(axis=1) / max(1, int(decode.sum()) or trace.tokens)
    sizes = manifest.expert_bytes
    known = entropy[~np.isnan(entropy)]
    stats = TraceStats(
        model=manifest.model.id,
        source=manifest.source,
        digest=trace.digest,
        complete=manifest.complete,
        tokens=trace.tokens,
        prefill_tokens=int((~decode).sum()),
        decode_tokens=int(decode.sum()),
        requests=manifest.requests,
        steps=manifest.steps,
        decode_steps=int(decode_steps.sum()),
        layers=trace.layers,
        experts_per_layer=(min(manifest.experts_per_layer), max(manifest.experts_per_layer)),
        top_k=trace.top_k,
        lookups=int(counts.sum()),
        distinct_per_decode_visit=_mean(counts[decode_steps] / trace.layers),
        distinct_per_prefill_visit=_mean(counts[~decode_steps] / trace.layers),
        expert_bytes=(min(sizes), max(sizes)) if sizes else None,
        model_expert_bytes=int(np.dot(sizes, manifest.experts_per_layer)) if sizes else None,
        token_cycle_experts=float(per_layer.sum()),
        token_cycle_bytes=round(float(np.dot(per_layer, sizes))) if sizes else None,
        experts_used=int((load > 0).sum()),
        experts_total=sum(manifest.experts_per_layer),
        load_entropy_mean=_mean(known),
        load_entropy_min=float(known.min()) if known.size else None,
        load_entropy_min_layer=manifest.moe_layers[int(np.nanargmin(entropy))] if known.size else None,
        overlap=overlap,
        overlap_chance=chance,
        recorded=_recorded(trace),
        notes=notes,
        warnings=[],
    )
    return msgspec.structs.replace(stats, warnings=_warnings(stats, error))


def _chunks(trace: Trace, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    size = max(1, _CHUNK // (trace.layers * trace.top_k))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _loads(trace: Trace, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each expert was chosen by the `chosen` tokens, [layers, num_experts]."""
    width = trace.num_experts + 1  # the last column collects unused slots
    offsets = np.repeat(np.arange(trace.layers) * width, trace.top_k)
    counts = np.zeros(trace.layers * width, dtype=np.int64)
    for rows in _chunks(trace, np.flatnonzero(chosen)):
        ids = np.minimum(trace.experts[rows].reshape(len(rows), -1), width - 1)
        counts += np.bincount((ids + offsets).ravel(), minlength=len(counts))
    return counts.reshape(trace.layers, width)[:, :-1]


def _entropy(load: NDArray[np.int64], experts_per_layer: list[int]) -> NDArray[np.float64]:
    """Normalised entropy of each layer's load; nan for a layer without load or choice."""
    entropy = np.full(len(load), np.nan)
    for layer, experts in enumerate(experts_per_layer):
        total = load[layer].sum()
        if total and experts > 1:
            share = load[layer][load[layer] > 0] / total
            entropy[layer] = max(0.0, float(-(share * np.log(share)).sum() / np.log(experts)))
    return entropy


def _overlap(trace: Trace, decode: NDArray[np.bool_], notes: list[str]) -> tuple[float | None, float]:
    """The share of experts kept from one decode token to the next, and its standard error."""
    rows = np.flatnonzero(decode)
    rows = rows[np.argsort(trace.request[rows], kind="stable")]
    follows = trace.request[rows[1:]] == trace.request[rows[:-1]]
    before, after = rows[:-1][follows], rows[1:][follows]
    every = -(-len(after) * trace.layers * trace.top_k // _SAMPLED_LOOKUPS)
    if every > 1:
        before, after = before[::every], after[::every]
        notes.append(f"overlap measured on one pair of tokens in {every}, {len(after)} pairs")
    kept, used = np.zeros(len(after)), np.zeros(len(after))
    for part in _chunks(trace, np.arange(len(after))):
        old, new = trace.experts[before[part]], trace.experts[after[part]]
        there = new != UNUSED
        used[part] = there.sum(axis=(1, 2))
        for slot in range(trace.top_k):
            kept[part] += ((new == old[:, :, slot : slot + 1]) & there).sum(axis=(1, 2))
    if not used.sum():
        return None, 0.0
    share = float(kept.sum() / used.sum())
    residual = kept - share * used  # of a ratio estimate
    return share, float(np.sqrt((residual**2).sum()) / used.sum())


def _chance(load: NDArray[np.int64], tokens: int) -> float | None:
    """The share of its experts that a token has in common with any other one, averaged over all pairs."""
    total = float(load.sum())
    if tokens < 2 or not total:
        return None
    return float((load * (load - 1.0)).sum() / (tokens - 1) / total)


def _distinct_per_visit(trace: Trace, decode: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each step: distinct experts summed over layers, and whether all of its tokens are decode tokens."""
    if trace.tokens == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    starts = np.flatnonzero(np.append(True, trace.step[1:] != trace.step[:-1]))
    sizes = np.diff(np.append(starts, trace.tokens))
    counts = np.zeros(len(starts), dtype=np.int64)
    single = np.flatnonzero(sizes == 1)
    for part in _chunks(trace, single):
        counts[part] = (trace.experts[starts[part]] != UNUSED).sum(axis=(1, 2))
    seen = np.zeros((trace.layers, trace.num_experts + 1), dtype=np.bool_)
    layer = np.arange(trace.layers)[:, None]
    for step in np.flatnonzero(sizes > 1):
        seen[:] = False
        for rows in _chunks(trace, np.arange(starts[step], starts[step] + sizes[step])):
            seen[layer, np.minimum(trace.experts[rows], trace.num_experts)] = True
        counts[step] = seen[:, :-1].sum()
    return counts, np.logical_and.reduceat(decode, starts)


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _recorded(trace: Trace) -> list[str]:
    kinds = {shard.kind for shard in trace.manifest.shards} - {"routing"}
    return (["weights"] if trace.has_weights else []) + sorted(kinds, reverse=True)


def _warnings(stats: TraceStats, error: float) -> list[str]:
    warnings = []
    if not stats.complete:
        warnings.append("incomplete: the recording was interrupted; what is here is whole, --resume continues it")
    if stats.source.startswith("synthetic"):
        warnings.append("synthetic: no model chose these experts; conclusions do not carry over to one")
    if stats.decode_tokens < _FEW_TOKENS:
        warnings.append(f"only {stats.decode_tokens} decode tokens: most of a replay will be first uses")
    if stats.overlap is not None and stats.overlap_chance is not None and stats.decode_tokens > _FEW_PAIRS:
        excess = stats.overlap - stats.overlap_chance
        if excess <= max(3 * error, 0.05 * stats.overlap_chance):
            warnings.append("routing looks independent from token to token: no policy can gain from recency in it")
    if "weights" not in stats.recorded:
        warnings.append("no gate weights: policies that read them cannot be replayed")
    if stats.expert_bytes is None:
        warnings.append("bytes per expert unknown: give replay a --model-shape")
    return warnings

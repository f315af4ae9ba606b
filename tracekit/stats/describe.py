"""All figures of a trace, from one reading of its routing."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.requests import told_apart
from tracekit.stats.cautions import cautions
from tracekit.stats.drift import Drift
from tracekit.stats.figures import LayerStats, TraceStats
from tracekit.stats.locality import Locality, quantile
from tracekit.stats.order import order_of
from tracekit.stats.prediction import Prediction
from tracekit.stats.speculation import recalls
from tracekit.trace import Trace

_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}


def describe(trace: Trace) -> TraceStats:
    """Measure `trace`, reading its routing once, block by block.

    Token cycle: the experts, and their bytes, that one decode token demands over all layers (mean over decode
    tokens, or over all tokens when there are none). A global LRU cache smaller than this never hits.

    Load entropy: the Shannon entropy of a layer's load over its experts, divided by the logarithm of their
    number; 1 is perfectly even, 0 is one expert.

    Overlap: the share of a decode token's experts that the decode token before it, of the same request, chose
    at the same layer. `overlap_chance` is that share for any two decode tokens of the trace, so popularity
    alone makes no difference between the two.

    The other figures are explained where they are counted: `locality`, `prediction`, `speculation`, `drift`.
    """
    manifest = trace.manifest
    order = order_of(trace)
    shape = (trace.layers, trace.num_experts)
    locality = Locality(order, *shape, trace.top_k)
    prediction = Prediction(trace.tokens, *shape, trace.top_k)
    drift = Drift(order.request, order.requests, *shape)
    for first in range(0, trace.tokens, block := shard_files.block_rows(manifest)):
        experts = trace.experts_of(first, min(first + block, trace.tokens))
        for part in (locality, prediction, drift):
            part.add(first, experts)

    decode_tokens = int(order.decode.sum())
    load = locality.load.sum(axis=0)
    some = locality.load[1] if decode_tokens else load
    per_layer = some.sum(axis=1) / max(1, decode_tokens or trace.tokens)
    entropy = _entropy(load, manifest.experts_per_layer)
    known = entropy[~np.isnan(entropy)]
    apart = told_apart(trace.step, trace.request, trace.phase)
    overlap, error = locality.overlap if apart else (None, 0.0)
    working = locality.working_sets
    reuses = locality.distances.sum(axis=0)
    sizes = manifest.expert_bytes
    stats = TraceStats(
        model=manifest.model.id,
        source=manifest.source,
        digest=trace.digest,
        complete=manifest.complete,
        tokens=trace.tokens,
        prefill_tokens=trace.tokens - decode_tokens,
        decode_tokens=decode_tokens,
        requests=manifest.requests,
        requests_told_apart=apart,
        steps=manifest.steps,
        decode_steps=order.decode_steps,
        layers=trace.layers,
        experts_per_layer=(min(manifest.experts_per_layer), max(manifest.experts_per_layer)),
        top_k=trace.top_k,
        lookups=int(locality.distinct.sum()),
        distinct_per_decode_visit=_per_visit(locality.distinct[1], order.decode_steps, trace.layers),
        distinct_per_prefill_visit=_per_visit(locality.distinct[0], order.prefill_steps, trace.layers),
        expert_bytes=(min(sizes), max(sizes)) if sizes else None,
        model_expert_bytes=int(np.dot(sizes, manifest.experts_per_layer)) if sizes else None,
        token_cycle_experts=float(per_layer.sum()),
        token_cycle_bytes=round(float(np.dot(per_layer, sizes))) if sizes else None,
        experts_used=int((load > 0).sum()),
        experts_total=sum(manifest.experts_per_layer),
        load_entropy_mean=float(known.mean()) if known.size else None,
        load_entropy_min=float(known.min()) if known.size else None,
        load_entropy_min_layer=manifest.moe_layers[int(np.nanargmin(entropy))] if known.size else None,
        overlap=overlap,
        overlap_error=error,
        overlap_chance=_chance(locality.load[1], decode_tokens),
        reuse_distance={name: quantile(reuses, share) for name, share in _QUANTILES.items()},
        first_use_share=_share(int(locality.first_uses.sum()), int(locality.first_uses.sum() + reuses.sum())),
        working_set={window: float(mean.mean()) for window, mean in working.items()},
        cross_layer=prediction.result,
        lookahead_recall=recalls(trace),
        domain_shift=drift.result() if apart else None,
        by_layer=[
            LayerStats(
                layer=number,
                experts_used=int((load[layer] > 0).sum()),
                load=load[layer, : manifest.experts_per_layer[layer]].tolist(),
                load_entropy=None if np.isnan(entropy[layer]) else float(entropy[layer]),
                reuse_distance={name: quantile(locality.distances[layer], share) for name, share in _QUANTILES.items()},
                first_uses=int(locality.first_uses[layer]),
                working_set={window: float(mean[layer]) for window, mean in working.items()},
            )
            for layer, number in enumerate(manifest.moe_layers)
        ],
        recorded=sorted(trace.kinds, reverse=True),
        notes=list(manifest.notes),
        warnings=[],
    )
    if not apart:
        stats.notes.append(
            "figures of requests are left out: passes of a batch, and nothing says whose tokens they are"
        )
    if prediction.too_large:
        stats.notes.append("experts across layers not compared: too many experts for a table of all pairs")
    return msgspec.structs.replace(stats, warnings=cautions(stats))


def _entropy(load: NDArray[np.int64], experts_per_layer: list[int]) -> NDArray[np.float64]:
    """Normalised entropy of each layer's load; nan for a layer without load or choice."""
    entropy = np.full(len(load), np.nan)
    for layer, experts in enumerate(experts_per_layer):
        total = load[layer].sum()
        if total and experts > 1:
            share = load[layer][load[layer] > 0] / total
            entropy[layer] = max(0.0, float(-(share * np.log(share)).sum() / np.log(experts)))
    return entropy


def _chance(load: NDArray[np.int64], tokens: int) -> float | None:
    """The share of its experts that a token has in common with any other one, averaged over all pairs."""
    total = float(load.sum())
    if tokens < 2 or not total:
        return None
    return float((load * (load - 1.0)).sum() / (tokens - 1) / total)


def _per_visit(distinct: np.int64, steps: int, layers: int) -> float | None:
    return float(distinct) / steps / layers if steps else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

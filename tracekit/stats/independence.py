"""Whether a trace's routing looks drawn anew for every token, from a sample small enough to look at in passing."""

import numpy as np

from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

SAMPLE = 1 << 20  # lookups
_FEW_PAIRS = 32


def looks_independent(trace: Trace) -> bool | None:
    """True if consecutive decode tokens share no more experts than any two would; None if too few can be compared.

    The first rows of the trace are looked at, about `SAMPLE` lookups. The share of a token's experts that the decode
    token before it, of the same request, chose too, is compared with the share that popularity alone gives: it has to
    be larger by three standard errors and by a twentieth.
    """
    rows = min(trace.tokens, max(2, SAMPLE // (trace.layers * trace.top_k)))
    experts = trace.experts_of(0, rows)
    decode = trace.phase[:rows] == DECODE
    follows = decode[1:] & decode[:-1] & (trace.request[1:rows] == trace.request[: rows - 1])
    pairs = np.flatnonzero(follows)
    if len(pairs) < _FEW_PAIRS:
        return None
    used = experts != UNUSED
    kept = np.zeros(len(pairs))
    chance = np.zeros(len(pairs))
    old, new = experts[pairs], experts[pairs + 1]
    for layer in range(trace.layers):
        load = np.bincount(experts[decode, layer][used[decode, layer]], minlength=trace.num_experts + 1).astype(float)
        share = np.append(load[: trace.num_experts] / decode.sum(), 0.0)
        chosen = np.minimum(new[:, layer], trace.num_experts)
        chance += share[chosen].sum(axis=1)
        for slot in range(trace.top_k):
            there = used[pairs + 1, layer]
            kept += ((new[:, layer] == old[:, layer, slot : slot + 1]) & there).sum(axis=1)
    excess = kept - chance
    error = float(excess.std() / np.sqrt(len(pairs)))
    return bool(excess.mean() <= max(3 * error, 0.05 * float(chance.mean())))

"""Figure 2 as numbers: how often a cache per layer hits, and how often the next layers' experts are guessed."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.curves.curve import CurvePoint, curve
from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

DISTANCES = (1, 2, 10)
"""Layers ahead that Figure 2 shows."""
MOST_SIZES = 16
_CHUNK = 1 << 22  # lookahead values ranked at once


class RecallPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The share of needed experts among the `fetched` best guesses made `distance` layers before."""

    distance: int
    fetched: int
    recall: float


def hit_ratios(trace: Trace) -> list[CurvePoint]:
    """LRU hit ratio of a cache per layer against its size; sizes from 1 to all experts, at most `MOST_SIZES`."""
    most = trace.num_experts
    sizes = sorted({int(size) for size in np.linspace(1, most, min(MOST_SIZES, most)).round()})
    return curve(trace, ["lru"], scope="layer", slots=sizes)


def recalls(trace: Trace, notes: list[str]) -> list[RecallPoint]:
    """Speculative recall against the number of experts fetched, for each distance of `DISTANCES` that was recorded.

    Over decode tokens, or all tokens if there are none. The guess is the largest logits of the later gate, ties to
    the smaller id. Distances without a record are skipped, with a note.
    """
    decode = np.flatnonzero(trace.phase == DECODE)
    rows = decode if len(decode) else np.arange(trace.tokens)
    found = []
    for distance in DISTANCES:
        ahead = f"recall {distance} layer{'s' * (distance > 1)} ahead"
        if distance >= trace.layers:
            notes.append(f"{ahead}: the model has only {trace.layers} MoE layers")
            continue
        logits = trace.lookahead(distance)
        if logits is None:
            notes.append(f"{ahead}: not recorded (tracekit record --lookahead {distance})")
            continue
        counts = _rank_counts(trace, logits, rows, distance)
        hit = np.cumsum(counts) / max(1, counts.sum())
        for fetched in range(1, min(trace.num_experts, max(8, 4 * trace.top_k)) + 1):
            found.append(RecallPoint(distance=distance, fetched=fetched, recall=float(hit[fetched - 1])))
    return found


def _rank_counts(trace: Trace, logits: NDArray[np.float16], rows: NDArray[np.intp], distance: int) -> NDArray[np.int64]:
    """How many needed experts stand at each place of the guessed order, [num_experts]."""
    counts = np.zeros(trace.num_experts, np.int64)
    experts = np.asarray(trace.manifest.experts_per_layer[distance:])
    ids = np.arange(trace.num_experts)
    step = max(1, _CHUNK // (logits.shape[1] * trace.num_experts))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        guess = logits[part].astype(np.float32)
        guess[np.isnan(guess)] = -np.inf
        absent = ids >= experts[:, None]
        needed = trace.experts[part][:, distance:]
        for slot in range(trace.top_k):
            one = needed[:, :, slot]
            used = one != UNUSED
            id_ = np.where(used, one, 0).astype(np.int64)[:, :, None]
            mine = np.take_along_axis(guess, id_, axis=2)
            ahead = ((guess > mine) | ((guess == mine) & (ids < id_))) & ~absent
            counts += np.bincount(ahead.sum(axis=2)[used], minlength=trace.num_experts)
    return counts

"""Figure 1 as numbers: which experts the tokens of a request choose, and which a cache holds."""

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from policies.events import EVICT, LOAD, Events
from tracekit.demand import Demand
from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

SHOWN_TOKENS = 64


class ActivationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One expert of one layer at one token. `weight` is the gate's, 1 where the trace holds none, 0 if not chosen."""

    layer: int
    token: int
    expert: int
    weight: float
    cached: bool


def activation(trace: Trace, notes: list[str]) -> list[ActivationRow]:
    """Which experts of the first, middle and last MoE layer the tokens of one request choose, and what LRU holds.

    `cached` says that a per-layer LRU cache of `top_k` experts holds the expert when the token arrives. The
    request is the one with the most decode steps of a single token; without any, there is nothing to draw.
    """
    alone = np.bincount(trace.step - trace.step[0])[trace.step - trace.step[0]] == 1
    rows = np.flatnonzero(alone & (trace.phase == DECODE))
    if not len(rows):
        notes.append("activation pattern: the trace has no decode step of a single token")
        return []
    requests, counts = np.unique(trace.request[rows], return_counts=True)
    rows = rows[trace.request[rows] == requests[np.argmax(counts)]][:SHOWN_TOKENS]
    layers = sorted({0, trace.layers // 2, trace.layers - 1})
    held = _held_before(trace, rows, layers)
    found = []
    for layer in layers:
        for token, row in enumerate(rows):
            chosen = trace.experts[row, layer]
            weights = np.ones(trace.top_k) if trace.weights is None else trace.weights[row, layer].astype(float)
            of = {int(e): float(w) for e, w in zip(chosen, weights, strict=True) if e != UNUSED}
            for expert in range(trace.manifest.experts_per_layer[layer]):
                cached = expert in held[layer, token]
                if expert in of or cached:
                    found.append(
                        ActivationRow(
                            layer=trace.manifest.moe_layers[layer],
                            token=token,
                            expert=expert,
                            weight=round(of.get(expert, 0.0), 4),
                            cached=cached,
                        )
                    )
    if trace.weights is None:
        notes.append("activation pattern: the trace holds no gate weights; chosen experts are drawn alike")
    return found


def _held_before(trace: Trace, rows: NDArray[np.intp], layers: Iterable[int]) -> dict[tuple[int, int], set[int]]:
    """The experts that the cache holds when each of `rows` (single-token steps) reaches each of `layers`."""
    ordinal = np.cumsum(np.diff(trace.step, prepend=trace.step[0]) != 0)[rows]
    resident: dict[int, set[int]] = {layer: set() for layer in layers}
    wanted = sorted(
        (int(step) * trace.layers + layer, layer, token) for layer in resident for token, step in enumerate(ordinal)
    )
    changes: list[tuple[int, bool, int]] = []  # visit, whether it is a load, key

    def watch(_demand: Demand, events: Events) -> None:
        visit, kind, key = events.visit, events.kind, events.expert
        kept = np.isin(visit % trace.layers, list(resident)) & np.isin(kind, [LOAD, EVICT]) & (visit < wanted[-1][0])
        changes.extend(zip(visit[kept].tolist(), (kind[kept] == LOAD).tolist(), key[kept].tolist(), strict=True))

    plan = plan_from_dict({"cache": {"capacity": f"{trace.top_k}/layer"}, "eviction": {"policy": "lru"}})
    replay(trace, plan, bounds=False, on_events=watch)
    found: dict[tuple[int, int], set[int]] = {}
    place = 0
    for reached, layer, token in wanted:
        while place < len(changes) and changes[place][0] < reached:
            _, is_load, key = changes[place]
            of_layer, expert = divmod(key, trace.num_experts)
            (resident[of_layer].add if is_load else resident[of_layer].discard)(expert)
            place += 1
        found[layer, token] = set(resident[layer])
    return found

"""The quantities of Figures 1 and 2 on any trace, as numbers: activation, LRU hit ratio, speculative recall."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.curves.curve import CurvePoint, curve
from engine.plan.plan import plan_from_dict
from engine.replay.event_log import KINDS
from engine.replay.replay import replay
from tracekit.demand import Demand
from tracekit.errors import TraceError
from tracekit.trace import DECODE, UNUSED, Trace

DISTANCES = (1, 2, 10)
"""Layers ahead that Figure 2 shows."""
SHOWN_TOKENS = 64
MOST_SIZES = 16
_CHUNK = 1 << 22  # lookahead values ranked at once


class ActivationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One expert of one layer at one token. `weight` is the gate's, 1 where the trace holds none, 0 if not chosen."""

    layer: int
    token: int
    expert: int
    weight: float
    cached: bool


class RecallPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The share of needed experts among the `fetched` best guesses made `distance` layers before."""

    distance: int
    fetched: int
    recall: float


class Written(TypedDict):
    """What `write_figures` wrote; file names are relative to its directory."""

    files: list[str]
    notes: list[str]
    quantities: dict[str, Any]


def write_figures(trace: Trace, output: Path) -> Written:
    """Write activation, hits and recall as PNG and CSV, and all of them as figures.json.

    What the trace cannot tell is left out, with a note. Raises TraceError for a trace without tokens.
    """
    from experiments.research.paper import charts

    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to draw")
    output.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    files: list[str] = []

    def save(name: str, chart: Any, rows: list[Any]) -> None:
        (output / f"{name}.png").write_bytes(charts.png(chart))
        with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0].__struct_fields__)
            writer.writerows([_plain(getattr(row, field)) for field in row.__struct_fields__] for row in rows)
        files.extend([f"{name}.png", f"{name}.csv"])

    hits = hit_ratios(trace)
    save("hits", charts.hits(hits, trace), hits)
    shown = activation(trace, notes)
    if shown:
        save("activation", charts.activation(shown, trace), shown)
    recall = recalls(trace, notes)
    if recall:
        save("recall", charts.recall(recall, trace), recall)
    quantities = {
        "trace": {"digest": trace.digest, "model": trace.manifest.model.id, "tokens": trace.tokens},
        "hits": msgspec.to_builtins(hits),
        "recall": msgspec.to_builtins(recall),
        "activation": {"cache": f"{trace.top_k}/layer", "cells": len(shown)},
        "notes": notes,
    }
    (output / "figures.json").write_text(json.dumps(quantities, indent=2) + "\n", encoding="utf-8")
    return {"files": [*sorted(files), "figures.json"], "notes": notes, "quantities": quantities}


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
    rows = _token_rows(trace)
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
    chosen = [(layer, token) for layer in layers for token in range(len(rows))]
    wanted = {int(ordinal[token]) * trace.layers + layer: (layer, token) for layer, token in chosen}
    visits = sorted(wanted)
    resident: dict[int, set[int]] = {layer: set() for layer in layers}
    found: dict[tuple[int, int], set[int]] = {}
    load, evict = (next(kind for kind, name in KINDS.items() if name == word) for word in ("load", "evict"))
    upcoming = iter(visits)
    following = next(upcoming, None)

    def watch(_demand: Demand, events: Any) -> None:
        nonlocal following
        layer_of = events.visit % trace.layers
        relevant = np.isin(layer_of, list(resident)) & np.isin(events.kind, [load, evict])
        for i in np.flatnonzero(relevant):
            while following is not None and following <= events.visit[i]:
                layer, token = wanted[following]
                found[layer, token] = set(resident[layer])
                following = next(upcoming, None)
            if following is None:
                return
            layer, expert = divmod(int(events.expert[i]), trace.num_experts)
            (resident[layer].add if events.kind[i] == load else resident[layer].discard)(expert)

    plan = plan_from_dict({"cache": {"capacity": f"{trace.top_k}/layer"}, "eviction": {"policy": "lru"}})
    replay(trace, plan, bounds=False, on_events=watch)
    while following is not None:
        layer, token = wanted[following]
        found[layer, token] = set(resident[layer])
        following = next(upcoming, None)
    return found


def _token_rows(trace: Trace) -> NDArray[np.intp]:
    decode = np.flatnonzero(trace.phase == DECODE)
    return decode if len(decode) else np.arange(trace.tokens)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value

"""Routing policies as obviously as they can be written: on sets and sorted lists, a token at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.demand import step_starts
from tracekit.rows import UNUSED
from tracekit.trace import Trace

Token = tuple[list[int], list[float]]
"""Chosen experts by slot, UNUSED for none, and their weights."""
Residents = Callable[[int, Sequence[int]], set[int]]
"""(layer, what the last visit of a layer demanded or nothing) -> experts that are there before the next visit"""
Parameters = Mapping[str, float | bool]


def cache_prior(
    ids: list[int], weights: list[float], logits: list[float], there: set[int], p: Parameters, score: str
) -> Token:
    """The top k of raised logits, in which the gate's own choice stands first among equals."""
    finite = [logit for logit in logits if math.isfinite(logit)]
    head_start = p["strength"] * (max(finite) - min(finite))
    least = min(logits[expert] for expert in ids)
    heavy = kept(ids, weights, int(p.get("keep", 0)))
    raised = {
        expert: (math.inf if expert in heavy else min(logit, least) if expert not in ids else logit)
        + (head_start if expert in there else 0.0)
        for expert, logit in enumerate(logits)
    }
    place = {expert: ids.index(expert) if expert in ids else len(ids) for expert in raised}
    ranked = sorted(raised, key=lambda expert: (-raised[expert], place[expert], -logits[expert], expert))
    top = ranked[: len(ids)]
    # Whoever comes in takes the slot of one who goes: the best for the worst.
    coming = sorted((expert for expert in top if expert not in ids), key=lambda expert: (-logits[expert], expert))
    going = sorted((expert for expert in ids if expert not in top), key=lambda e: (logits[e], -place[e]))
    swap = dict(zip(going, coming, strict=True))
    new = [swap.get(expert, expert) for expert in ids]
    if not swap:
        return ids, weights
    total = sum(weights)
    highest = max(logits[expert] for expert in ids)
    factor = total / sum(score_of(logits[expert], highest, score) for expert in ids)
    own = dict(zip(ids, weights, strict=True))
    found = [own[e] if e in own else factor * score_of(logits[e], highest, score) for e in new]
    return new, scaled(found, total)


def substitute(
    ids: list[int], weights: list[float], logits: list[float], there: set[int], p: Parameters, score: str
) -> Token:
    """Slot by slot: the largest logit among those there that nobody has yet."""
    finite = [logit for logit in logits if math.isfinite(logit)]
    least = min(logits[expert] for expert in ids)
    heavy = kept(ids, weights, int(p.get("keep", 0)))
    new = list(ids)
    for slot, expert in enumerate(ids):
        free = sorted(there - set(new), key=lambda e: (-logits[e], e))
        if expert in there or expert in heavy or not free:
            continue
        if logits[expert] - min(logits[free[0]], least) < p["strength"] * (max(finite) - min(finite)):
            new[slot] = free[0]
    return new, weights


def drop_cold(
    ids: list[int], weights: list[float], logits: list[float], there: set[int], p: Parameters, score: str
) -> Token:
    """Whoever is missing and weighs less than a share of an even split goes."""
    total = sum(weights)
    heavy = kept(ids, weights, int(p.get("keep", 0)))
    gone = {
        expert
        for expert, weight in zip(ids, weights, strict=True)
        if expert not in there and expert not in heavy and weight < p["share"] * total / len(ids)
    }
    return without(ids, weights, gone, total, bool(p.get("renormalise", True)))


def adaptive_k(
    ids: list[int], weights: list[float], logits: list[float], there: set[int], p: Parameters, score: str
) -> Token:
    """The shortest beginning of the choice, heaviest first, that makes up the share."""
    total = sum(weights)
    ranked = sorted(range(len(ids)), key=lambda slot: (-weights[slot], slot))
    count = next(
        (n for n in range(1, len(ids)) if p["share"] < 1 and sum(weights[s] for s in ranked[:n]) >= p["share"] * total),
        len(ids),
    )
    gone = {ids[slot] for slot in ranked[count:]}
    return without(ids, weights, gone, total, bool(p.get("renormalise", True)))


def prune(
    ids: list[int], weights: list[float], logits: list[float], left: set[int], p: Parameters, score: str
) -> Token:
    """The gate's choice without those who are gone, then the best of those left; `left` stands where others look."""
    coming = iter(sorted(left - set(ids), key=lambda expert: (-logits[expert], expert)))
    new = [expert if expert in left else next(coming, UNUSED) for expert in ids]
    if new == ids:
        return ids, weights
    total = sum(weights)
    highest = max(logits[expert] for expert in ids)
    factor = total / sum(score_of(logits[expert], highest, score) for expert in ids)
    own = {UNUSED: 0.0} | dict(zip(ids, weights, strict=True))
    found = [own[e] if e in own else factor * score_of(logits[e], highest, score) for e in new]
    return new, scaled(found, total)


def most_important(given: NDArray[Any], keep: int) -> list[set[int]]:
    """By layer, those who got most of [layers, experts]; ties by number."""
    return [set(sorted(range(len(row)), key=lambda e: (-row[e], e))[:keep]) for row in given.tolist()]


RULES = {"cache-prior": cache_prior, "substitute": substitute, "drop-cold": drop_cold, "adaptive-k": adaptive_k}


EVERY_RULE = RULES | {"prune": prune}


def kept(ids: list[int], weights: list[float], count: int) -> set[int]:
    """The heaviest of the choice."""
    ranked = sorted(range(len(ids)), key=lambda slot: (-weights[slot], slot))
    return {ids[slot] for slot in ranked[:count]}


def without(ids: list[int], weights: list[float], gone: set[int], total: float, again: bool) -> Token:
    new = [UNUSED if expert in gone else expert for expert in ids]
    left = [0.0 if expert in gone else weight for expert, weight in zip(ids, weights, strict=True)]
    return new, scaled(left, total) if gone and again else left


def scaled(weights: list[float], total: float) -> list[float]:
    """The same in proportion, adding up to `total`."""
    now = 0.0
    for weight in weights:
        now += weight
    return [weight * total / now if now else weight for weight in weights]


def score_of(logit: float, highest: float, score: str) -> float:
    return math.exp(logit - highest) if score == "softmax" else 1 / (1 + math.exp(-logit))


def by_recency(layers: int, experts: int, capacity: int) -> "Recency":
    """Caches of a layer each, of the experts used last."""
    return Recency(layers, experts, capacity)


class Recency:
    """LRU caches as lists, the last used at the end."""

    def __init__(self, layers: int, experts: int, capacity: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(layers)]
        self.capacity = capacity

    def there(self, layer: int) -> set[int]:
        return set(self.held[layer])

    def visit(self, layer: int, chosen: list[int]) -> None:
        """Serve a visit: choices by token and slot. What does not fit beside what it demands itself is not kept."""
        held = self.held[layer]
        demand = list(dict.fromkeys(chosen))
        for expert in demand:
            if expert in held:
                continue
            if len(held) == self.capacity:
                victim = next((one for one in held if one not in demand), None)
                if victim is None:
                    continue
                held.remove(victim)
            held.append(expert)
        for expert in list(dict.fromkeys(reversed(chosen)))[::-1]:
            if expert in held:
                held.remove(expert)
                held.append(expert)


def alter(
    trace: Trace, policy: str, parameters: Parameters, cache: Recency, left: list[set[int]] | None = None
) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """The experts and weights of a trace as `policy` alters them beside `cache`, or beside what pruning has `left`."""
    experts, weights = trace.experts.copy(), np.array(trace.weights)
    logits, starts = trace.logits, step_starts(trace.step)
    for step in range(len(starts) - 1):
        for layer in range(trace.layers):
            there = cache.there(layer) if left is None else set(left[layer])
            chosen: list[int] = []
            for row in range(starts[step], starts[step + 1]):
                known = [] if logits is None else logits[row, layer].astype(float).tolist()
                ids, heavy = experts[row, layer].tolist(), weights[row, layer].astype(float).tolist()
                ids, heavy = EVERY_RULE[policy](ids, heavy, known, there, parameters, trace.manifest.score_function)
                experts[row, layer], weights[row, layer] = ids, heavy
                chosen += [expert for expert in ids if expert != UNUSED]
                there |= set(chosen)  # what the visit copies anyway
            cache.visit(layer, chosen)
    return experts, weights

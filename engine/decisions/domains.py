"""Which domain is served: by requests' labels, or by the routing of their first tokens; and when that changes.

A request's domain is known from its first step on where a label says it, else from the step after the one in which its
first `detect` tokens are through. Of the requests in flight whose domain is known most decide: at each step at which
one becomes known, the cache switches to the domain of most of them. Of as many, what is kept stays; else the first goes
on. Nothing is peeked at: an engine that serves these requests knows as much.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.plan.placement import Domain, Placement, keys_of, layer_of, load_placement, parse_pinned
from engine.plan.tables import PlacementPlan
from policies.switching import Domains, Kept
from tracekit.demand import step_starts
from tracekit.errors import PlanError
from tracekit.labels import labels_of, numbered
from tracekit.rows import UNUSED
from tracekit.trace import Trace

UNITS = 1e6
"""Logarithms are compared as whole numbers of this part, so that no order of adding up matters."""


def domains_of(placement: PlacementPlan, warm: str | None, experts_per_layer: Sequence[int]) -> Domains | None:
    """What is kept for each domain by a plan with this `placement`, and the file `warm`, if any, to begin with; None
    where it does not ask for domains. Raises PlanError."""
    if placement.by is None and placement.detect is None:
        return None
    pinned = None if placement.pinned is None else parse_pinned(placement.pinned).file
    files = [file for file in (pinned, warm) if file is not None]
    found = {file: placement_by_domain(file, experts_per_layer) for file in files}
    if not found:
        raise PlanError(
            "placement.by and placement.detect choose among a placement's domains: give placement.pinned, or "
            "cache.warm, as a file that tracekit place --labels or --clusters made"
        )
    names = [list(one.domains) for one in found.values()]
    if names[0] != names[-1]:
        raise PlanError(f"{' and '.join(found)} have other domains: {', '.join(names[0])}; {', '.join(names[-1])}")
    pins, warms = found.get(pinned or ""), found.get(warm or "")
    kept = [
        Kept(
            name=name,
            pinned=() if pins is None else _keys(pins.domains[name], experts_per_layer, f"placement {pinned}"),
            warm=() if warms is None else _wanted(warms.domains[name], experts_per_layer, f"cache.warm {warm}"),
        )
        for name in names[0]
    ]
    counts = [counts_of(one, experts_per_layer, files[0]) for one in found[files[0]].domains.values()]
    return Domains(tuple(kept), np.stack(counts), placement.detect, placement.labels)


def placement_by_domain(file: str, experts_per_layer: Sequence[int]) -> Placement:
    """The placement in a file, which has domains. Raises PlanError."""
    found = load_placement(file)
    if not found.domains:
        raise PlanError(f"placement {file} knows no domains: make one with tracekit place --labels or --clusters")
    found.check_model(experts_per_layer, f"placement {file}")
    return found


def _keys(domain: Domain, experts_per_layer: Sequence[int], label: str) -> tuple[int, ...]:
    return keys_of(domain.pinned, experts_per_layer, label)


def _wanted(domain: Domain, experts_per_layer: Sequence[int], label: str) -> tuple[int, ...]:
    """The domain's experts, the most wanted last."""
    counts = counts_of(domain, experts_per_layer, label)
    return tuple(sorted(_keys(domain, experts_per_layer, label), key=lambda key: (counts[key], -key)))


def counts_of(domain: Domain, experts_per_layer: Sequence[int], label: str) -> np.ndarray:
    """How often the domain's requests chose each key: i64 [keys]. Raises PlanError."""
    counts = np.zeros((len(experts_per_layer), max(experts_per_layer)), np.int64)
    for name, numbers in domain.counts.items():
        layer = layer_of(name, len(experts_per_layer))
        if layer < 0 or len(numbers) != experts_per_layer[layer] or min(numbers) < 0 or max(numbers) >= 1 << 53:
            raise PlanError(f"{label}: counts.{name} holds a count of each expert of a MoE layer, from 0")
        counts[layer, : len(numbers)] = numbers
    return counts.ravel()


def log_shares(counts: np.ndarray, experts: int) -> np.ndarray:
    """The logarithm of how likely tokens of each domain choose each key of its layer, in whole UNITS: i64 [domains,
    keys], from counts [domains, keys].

    Shares with one added to each count, so that nothing is impossible (multinomial naive Bayes: Manning, Raghavan &
    Schütze 2008, "Introduction to Information Retrieval", 13.2).
    """
    seen = counts.reshape(len(counts), -1, experts) + 1.0
    found: np.ndarray = np.rint(UNITS * np.log(seen / seen.sum(axis=2, keepdims=True))).astype(np.int64)
    return found.reshape(len(counts), -1)


def nearest(shares: np.ndarray, chosen: np.ndarray) -> int:
    """The domain under whose `log_shares` these choices, i64 [keys], are likeliest; the first of equals."""
    return int(np.argmax(shares @ chosen))


class Switch(NamedTuple):
    """From a step on, by its running number, a domain's is kept."""

    step: int
    domain: int


def switches_of(trace: Trace, domains: Domains, experts: int) -> list[Switch]:
    """When a trace's requests make the cache switch, in order. `experts` is the most of a layer. Raises PlanError."""
    starts = step_starts(trace.step)
    step = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    numbers, of_row = np.unique(trace.request, return_inverse=True)
    first, last = np.full(len(numbers), len(starts)), np.full(len(numbers), -1)
    np.minimum.at(first, of_row, step)
    np.maximum.at(last, of_row, step)
    if domains.detect is None:
        names = [kept.name for kept in domains.kept]
        labels = numbered(labels_of(trace, domains.labels), names, domains.labels or str(trace.path))
        known, label = first, np.array(labels)[numbers]
    else:
        known, label = _detected(trace, domains, experts, step, of_row.reshape(-1), len(numbers))
    return list(majorities(known, last, label, len(domains.kept)))


def majorities(known: np.ndarray, last: np.ndarray, label: np.ndarray, domains: int) -> list[Switch]:
    """The switches by requests that count from step `known` to step `last`, each of domain `label`; [requests] each.

    A request of a label below 0, or known after its end, never counts.
    """
    counting = np.flatnonzero((label >= 0) & (known <= last))
    begins = counting[np.argsort(known[counting], kind="stable")].tolist()
    ends = counting[np.argsort(last[counting], kind="stable")].tolist()
    votes, now, begun, ended, found = np.zeros(domains, np.int64), -1, 0, 0, []
    while begun < len(begins):
        step = int(known[begins[begun]])
        while begun < len(begins) and known[begins[begun]] == step:
            votes[label[begins[begun]]] += 1
            begun += 1
        while last[ends[ended]] < step:
            votes[label[ends[ended]]] -= 1
            ended += 1
        chosen = majority(votes, now)
        if chosen != now:
            found.append(Switch(step, chosen))
            now = chosen
    return found


def majority(votes: np.ndarray, now: int) -> int:
    """The domain with most votes, [domains]; of equals what is kept `now` (-1: none), else the first."""
    if not votes.any() or (now >= 0 and votes[now] == votes.max()):
        return now
    return int(np.argmax(votes))


def _detected(
    trace: Trace, domains: Domains, experts: int, step: np.ndarray, of_row: np.ndarray, requests: int
) -> tuple[np.ndarray, np.ndarray]:
    """The step from which each request's domain is known, and which it is (-1: never); [requests] each."""
    assert domains.detect is not None
    known, label = np.zeros(requests, np.int64), np.full(requests, -1)
    shares = log_shares(domains.counts, experts)
    order = np.argsort(of_row, kind="stable")
    edges = np.searchsorted(of_row[order], np.arange(requests + 1))
    for request in range(requests):
        rows = order[edges[request] : edges[request + 1]]
        if len(rows) >= domains.detect:
            rows = rows[: domains.detect]
            known[request] = step[rows[-1]] + 1
            label[request] = nearest(shares, chosen_keys(trace.experts[rows], experts))
    return known, label


def chosen_keys(chosen: np.ndarray, experts: int) -> np.ndarray:
    """How often tokens chose each key: i64 [keys], from experts [tokens, layers, k]."""
    layers = chosen.shape[1]
    keys = (chosen + (np.arange(layers) * experts)[None, :, None])[chosen != UNUSED]
    return np.bincount(keys, minlength=layers * experts)

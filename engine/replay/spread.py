"""Totals spread over visits: decisions that have a cell's counts, where its routing is not known.

What is the same whatever the spread: every visit's distinct experts, tokens, and prefetches follow their totals as
evenly as whole numbers go. Which lookups miss is said by `Spread`:

- `even`: every n-th lookup, so that misses follow their total as evenly as whole numbers go, too. It needs no seed.
  Without prefetching it waits least: a visit hides only so much behind its resident experts, so misses that come
  together wait longer.
- `random`: each lookup is as likely a miss as any other, the total exact (drawn without replacement, by a seed). It is
  what independent misses would do. Real misses come in clusters, at changes of subject, and may wait longer still.

Every expert has a slot of its own, and one more for what is prefetched in vain (`Totals.slots`): no copy waits for a
slot that is still in use. A prefetch is of the next MoE layer of the same step, so a visit of the last layer prefetches
nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from policies.events import DROP, HIT, HIT_PREFETCHED, KIND_SHIFT, LOAD, PREFETCH, SLOT_SHIFT, Events
from tracekit.arrays import I64
from tracekit.demand import Demand
from tracekit.errors import StudyError

Spread = Literal["even", "random"]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a cell counts over all of its `steps`: all decode steps of a model of `layers` MoE layers of `experts`."""

    steps: int
    layers: int
    experts: int
    top_k: int
    tokens: int
    lookups: int
    misses: int
    useful: int
    """Prefetches that are demanded at the visit they were made for: hits."""
    wasted: int

    @property
    def slots(self) -> int:
        """Two for each expert."""
        return 2 * self.layers * self.experts


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """By visit, i64 [visits]: distinct experts, misses among them, prefetches for it that were right, and wrong."""

    distinct: I64
    misses: I64
    useful: I64
    wasted: I64


def even(total: int, parts: int) -> I64:
    """`total` in `parts` whole numbers that differ by one at most, evenly mixed: i64 [parts]."""
    return np.diff(np.arange(parts + 1, dtype=np.int64) * total // parts)


def spread(totals: Totals, how: Spread, seed: int) -> Visits:
    """The totals by visit. Raises StudyError where they cannot be: more prefetches than a layer has experts for."""
    count = totals.steps * totals.layers
    distinct = even(totals.lookups, count)
    ends = np.concatenate([[0], np.cumsum(distinct)])
    if how == "even":
        misses = np.diff(ends * totals.misses // max(totals.lookups, 1))
    else:
        missed = np.zeros(totals.lookups + 1, np.int64)
        missed[np.random.default_rng(seed).permutation(totals.lookups)[: totals.misses] + 1] = 1
        misses = np.diff(np.cumsum(missed)[ends])
    ahead = np.arange(count) % totals.layers > 0
    useful = _placed(totals.useful, np.where(ahead, distinct - misses, 0), ahead, "useful ones than hits")
    others = np.where(ahead, totals.experts - distinct, 0)
    wasted = _placed(totals.wasted, others, ahead, "wrong ones than experts that are not demanded")
    return Visits(distinct, misses, useful, wasted)


def _placed(total: int, room: I64, ahead: np.ndarray, words: str) -> I64:
    """`total` spread evenly over visits that are prefetched for; what finds no room goes to the next that has it."""
    if total > int(room.sum()):
        raise StudyError(f"{total} prefetches do not fit: there are more {words} after the first layer ({room.sum()})")
    wanted = np.zeros_like(room)
    if total:
        wanted[ahead] = even(total, int(ahead.sum()))
    placed = np.minimum(wanted, room)
    if int(placed.sum()) == total:
        return placed
    carried, taken = 0, placed.tolist()
    limits, asked = room.tolist(), wanted.tolist()
    for visit in range(len(taken)):
        taken[visit] = min(asked[visit] + carried, limits[visit])
        carried += asked[visit] - taken[visit]
    for visit in range(len(taken)):  # from the end on to the beginning
        more = min(carried, limits[visit] - taken[visit])
        taken[visit], carried = taken[visit] + more, carried - more
    return np.array(taken, np.int64)


def decisions(totals: Totals, visits: Visits, first: int, last: int) -> tuple[Demand, Events]:
    """The steps `first` to `last` as a demand and its decisions.

    A visit demands the first experts of its layer: resident ones, then those that were prefetched, then missing ones;
    behind them are those that were prefetched in vain.
    """
    layers, place = totals.layers, slice(first * totals.layers, last * totals.layers)
    distinct, misses = visits.distinct[place], visits.misses[place]
    useful, wasted = visits.useful[place], visits.wasted[place]
    hits = distinct - misses
    layer = np.arange(len(distinct)) % layers

    def next_of(values: I64) -> I64:
        return np.concatenate([values[1:], [0]]).astype(np.int64)  # the last visit is of the last layer

    parts = [  # kind, how many of them at each visit, the expert of the first, how many layers ahead, whether in vain
        (HIT, hits - useful, np.zeros_like(hits), 0, 0),
        (HIT_PREFETCHED, useful, hits - useful, 0, 0),
        (LOAD, misses, hits, 0, 0),
        (DROP, wasted, distinct, 0, 1),
        (PREFETCH, next_of(useful), next_of(hits - useful), 1, 0),
        (PREFETCH, next_of(wasted), next_of(distinct), 1, 1),
    ]
    counts = np.stack([number for _, number, *_ in parts], axis=1)
    base = np.stack([(layer + ahead) * totals.experts + begin for _, _, begin, ahead, _ in parts], axis=1)
    kinds = np.tile(np.array([kind for kind, *_ in parts], np.int64), len(counts))
    in_vain = np.tile(np.array([vain for *_, vain in parts], np.int64), len(counts))
    key = np.repeat(base.ravel(), counts.ravel()) + _within(counts.ravel())
    slot = key + np.repeat(in_vain, counts.ravel()) * (layers * totals.experts)
    code = np.repeat(kinds, counts.ravel()) << KIND_SHIFT | slot << SLOT_SHIFT | key
    start = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int64)

    step_tokens = np.diff(np.arange(first, last + 1, dtype=np.int64) * totals.tokens // totals.steps)
    number = _within(distinct)
    of_step = np.repeat(np.repeat(step_tokens, layers), distinct)
    chosen = of_step * totals.top_k
    among = np.repeat(distinct, distinct)
    keys = (np.repeat(layer, distinct) * totals.experts + number).astype(np.uint32)
    demand = Demand(
        layers=layers,
        experts=totals.experts,
        first_step=first,
        layer=layer.astype(np.int32),
        start=np.concatenate([[0], np.cumsum(distinct)]).astype(np.int64),
        keys=keys,
        recency=keys,
        tokens=np.clip((number + 1) * chosen // among - number * chosen // among, 1, of_step).astype(np.int32),
        step_tokens=step_tokens.astype(np.int32),
        phase=np.ones(last - first, np.uint8),
    )
    return demand, Events(code, start, first * layers, orderly=True)


def _within(counts: I64) -> I64:
    """0, 1, ... within each of so many: i64 [sum of counts]."""
    begins = np.cumsum(counts) - counts
    return np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(begins, counts)

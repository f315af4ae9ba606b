"""Hit ratio against cache size, with intervals: every policy of a study at the same sizes, whatever a size costs it.

LRU and Belady take one pass for all sizes, the others one for each. So many sizes are drawn as the others have time
for; what the grid's plans found at its own capacities is there anyway.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from engine.curves.stack_curve import STACK_CURVES, Scope
from engine.decisions.evidence import check_evidence
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan
from engine.replay.passes import run
from engine.replay.setting import Setting
from experiments.statistics.interval import fewest_requests, interval, ratio_of
from experiments.study.cells import Cell, Routing
from experiments.study.grid import eviction_name, needs_future
from experiments.study.schema import CURVES
from experiments.study.shared import SharedRouting, SharedRoutings
from experiments.study.workers import OnPiece, Workers
from policies.events import ADMIT, HIT_PREFETCHED
from tracekit.errors import TracekitError
from tracekit.rows import DECODE

CURVE_POINTS = 64
MOST_LOOKUPS = 100_000_000
"""Of the passes that a curve takes in all, beyond those that tell all sizes at once: some seconds."""


class Wanted(NamedTuple):
    """The curves of one routing: its plans without prefetching, one for each policy."""

    routing: Routing
    scope: Scope
    bounds: bool | None
    plans: tuple[Plan, ...]
    slots: tuple[int, ...]
    """Sizes of the grid, which are drawn in any case."""
    level: float


def curve_table(cells: Sequence[Cell], level: float, workers: Workers) -> pl.DataFrame:
    """The curves of every routing (`CURVES`); none of traces that take too long, or where bounds are not asked for."""
    tasks = wanted_curves(cells, level)
    found = {task[:3]: rows for task, rows in workers.run(curve_rows, tasks)}
    return pl.concat([pl.DataFrame(schema=CURVES), *(found[task[:3]] for task in tasks)]).rechunk()


def wanted_curves(cells: Sequence[Cell], level: float) -> list[Wanted]:
    """What is to be drawn, by routing and scope."""
    asked: dict[tuple[Routing, Scope, bool | None], dict[str, Plan]] = {}
    sizes: dict[tuple[Routing, Scope, bool | None], set[int]] = {}
    for cell in cells:
        capacity = cell.plan.capacity
        key: tuple[Routing, Scope, bool | None] = (
            cell.routing,
            "layer" if cell.plan.per_layer else "global",
            cell.bounds,
        )
        plans = asked.setdefault(key, {})
        plan = cell.plan
        if plan.prefetch.predictor == "none" and plan.alike and plan.keeps_misses and plan.exact:
            plans.setdefault(eviction_name(cell.plan), cell.plan)
            if capacity.unit == "slots":
                sizes.setdefault(key, set()).add(int(capacity.amount))
    return [
        Wanted(*key, tuple(plans.values()), tuple(sorted(sizes.get(key, ()))), level) for key, plans in asked.items()
    ]


def curve_rows(shared: SharedRoutings, task: Wanted, on_piece: OnPiece | None = None) -> pl.DataFrame:
    """The curves of one routing (`CURVES`)."""
    known = shared.of(task.routing)
    if not known.bounded(task.bounds) or not known.trace.tokens:
        return pl.DataFrame(schema=CURVES)
    others = [plan for plan in task.plans if eviction_name(plan) not in STACK_CURVES]
    slots = chosen_sizes(known, task, len(others))
    found = [_stacked(known, task, policy, slots) for policy in STACK_CURVES]
    for plan in others:
        try:
            check_evidence(known.trace, plan)
            found.append(_replayed(known, task, plan, slots, on_piece))
        except TracekitError:
            continue  # its cells say why
    return pl.concat(found)


def chosen_sizes(known: SharedRouting, task: Wanted, others: int) -> np.ndarray:
    """Sizes from nothing to everything, as many as there is time for, and the grid's."""
    per_layer = known.trace.manifest.experts_per_layer
    most = max(per_layer) if task.scope == "layer" else sum(per_layer)
    lookups = known.trace.tokens * known.trace.layers * known.trace.top_k
    points = min(CURVE_POINTS, most, MOST_LOOKUPS // max(1, lookups * others) if others else CURVE_POINTS)
    evenly = np.linspace(0, most, points + 1) if points else np.array([0, most])
    own = [size for size in task.slots if size <= most]
    return np.unique(np.concatenate([evenly.round(), own])).astype(np.int64)


def _stacked(known: SharedRouting, task: Wanted, policy: str, slots: np.ndarray) -> pl.DataFrame:
    curve = known.curve(policy, task.scope)
    own = curve.by_request
    requests = None if own is None else (own.hits[:, slots].T, own.lookups)
    return _rows(known, task, policy, policy != "lru", slots, curve.hits[:, slots], curve.lookups, requests)


def _replayed(
    known: SharedRouting, task: Wanted, plan: Plan, slots: np.ndarray, on_piece: OnPiece | None
) -> pl.DataFrame:
    hits, lookups = np.zeros((2, len(slots)), np.int64), np.zeros(2, np.int64)
    steps, each = known.requests.steps, known.requests.of_each
    by_request, asked = [], np.zeros(0)
    report = None if on_piece is None else lambda tokens: on_piece()
    for place, count in enumerate(slots.tolist()):
        text = f"{count}/layer" if task.scope == "layer" else str(count)
        spec = Setting.of(known.trace.manifest, plan.replace(cache=CachePlan(capacity=text))).spec
        (done,) = run(known.trace, spec, steps=steps, demands=known.demands, progress=report)
        hits[:, place] = done.kinds[:, : HIT_PREFETCHED + 1].sum(axis=1)
        lookups = done.kinds[:, : ADMIT + 1].sum(axis=1)
        by_request.append(each(done.step_kinds[:, : HIT_PREFETCHED + 1].sum(axis=1)))
        asked = each(done.step_kinds[:, : ADMIT + 1].sum(axis=1))
    name = eviction_name(plan)
    return _rows(known, task, name, needs_future(plan), slots, hits, lookups, (np.stack(by_request), asked))


def _rows(
    known: SharedRouting,
    task: Wanted,
    policy: str,
    bound: bool,
    slots: np.ndarray,
    hits: np.ndarray,
    lookups: np.ndarray,
    requests: tuple[np.ndarray, np.ndarray] | None,
) -> pl.DataFrame:
    """Rows of one policy; `hits` [phases, slots], `lookups` [phases], hits of `requests` [slots, requests] and
    lookups."""
    per_layer = known.trace.manifest.experts_per_layer
    held = slots * (len(per_layer) if task.scope == "layer" else 1) / sum(per_layer)
    low, high = (None, None) if requests is None else hit_interval(*requests, level=task.level)
    columns = {
        "trace": task.routing.path,
        "batch": task.routing.batch,
        "scope": task.scope,
        "policy": policy,
        "needs_future": bound,
        "slots": slots,
        "share": np.minimum(1.0, held),
        "hit_ratio": hits.sum(axis=0) / max(int(lookups.sum()), 1),
        "decode_hit_ratio": hits[DECODE] / max(int(lookups[DECODE]), 1),
        "low": low,
        "high": high,
    }
    return pl.DataFrame(columns, schema=CURVES)


def hit_interval(
    hits: np.ndarray, lookups: np.ndarray, *, level: float
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The interval of hit ratios, [...] each, from `hits` [..., requests] and `lookups` [requests]; None of too few."""
    if not lookups.sum():
        return None, None
    ratio = ratio_of(np.asarray(hits, np.float64), np.broadcast_to(np.asarray(lookups, np.float64), hits.shape))
    if float(np.min(ratio.effective)) < fewest_requests(level):
        return None, None
    low, high = interval(ratio, level)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)

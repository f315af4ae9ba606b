"""How much work a study is, and about how long it takes: found by doing a little of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.decisions.hints import iter_hints
from engine.replay.passes import run
from experiments.study.cell_results import setting_of
from experiments.study.cells import Cell, Routing, groups
from experiments.study.shared import SharedRouting, SharedRoutings
from policies.registry import prefetcher
from tracekit.demand import Demand
from tracekit.errors import TracekitError

MOST_KINDS = 24
MOST_PIECES = 64
SAMPLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Estimate:
    """`passes` of decisions, timed as `cells`; `seconds` on one core, None where nothing could be tried."""

    passes: int
    cells: int
    seconds: float | None


def estimate(cells: Sequence[Cell]) -> Estimate:
    """Time the beginning of one pass of each kind: routing, eviction, prefetcher.

    What is done once for many passes comes on top: bounds, ranking lookahead, verdicts.
    """
    shared = SharedRoutings()
    work = groups(cells)
    found: dict[tuple[Routing, str, str, int, int], float | None] = {}
    known = []
    for group in work:
        plan = group[0].plan
        kind = (group[0].routing, plan.eviction.policy, plan.prefetch.predictor, plan.prefetch.count, len(group))
        if kind not in found and len(found) < MOST_KINDS:
            found[kind] = seconds_of(shared, group)
        seconds = found.get(kind)
        if seconds is not None:
            known.append(seconds)
    return Estimate(len(work), len(cells), sum(known) * len(work) / len(known) if known else None)


def seconds_of(shared: SharedRoutings, group: Sequence[Cell]) -> float | None:
    """About how long a group takes, from ever more of its pieces; None where it cannot be replayed."""
    ready = []
    try:
        routing = shared.of(group[0].routing)
        for cell in group:
            ready.append(setting_of(routing, cell))
        pieces = routing.demands if routing.demands is not None else routing.beginning()
        if not pieces:
            return None
        spec, targets = ready[0].spec, [setting.target for setting in ready]
        reads_lookahead = prefetcher(spec.prefetch).reads == "lookahead"
        hints = list(iter_hints(routing.trace, spec, pieces[:MOST_PIECES])) if reads_lookahead else None

        def seconds(count: int) -> float:
            start = time.perf_counter()
            run(routing.trace, spec, targets, steps=routing.requests.steps, demands=pieces[:count], hints=hints)
            return time.perf_counter() - start

        seconds(1)  # compiles, or reads what was compiled
        count = 1
        most = min(len(pieces), MOST_PIECES)
        while (took := seconds(count)) < SAMPLE_S and count < most:
            count = min(4 * count, most)
        return took * all_pieces(routing, pieces) / count
    except TracekitError:
        return None


def all_pieces(routing: SharedRouting, known: Sequence[Demand]) -> float:
    """How many pieces of this size the routing has."""
    steps = sum(piece.steps for piece in known)
    return len(known) * len(routing.requests.steps.phase) / max(steps, 1)

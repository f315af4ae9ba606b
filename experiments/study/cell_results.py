"""Measuring cells: the rows of a group of cells, from as few passes over the trace as their decisions allow."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from engine.curves.stack_curve import STACK_CURVES, Scope
from engine.decisions.evidence import check_evidence
from engine.hardware import load_hardware
from engine.replay.advice import advice, fit_warnings
from engine.replay.estimates import device_bytes, find_estimates
from engine.replay.passes import DECODE, Replayed, spec_of
from engine.replay.predictor_costs import with_predictors
from engine.replay.replay import counts_of, time_of
from engine.replay.result import Counts
from engine.shapes import ModelShape
from engine.simulator.costs import Costs, model_costs
from engine.simulator.timeline import STALLS
from experiments.study.cells import Cell
from experiments.study.grid import needs_future, plan_name
from experiments.study.passes import Target, time_all
from experiments.study.workshop import Bench, Workshop
from policies.cache import CacheSpec
from policies.events import HIT
from tracekit.errors import TraceError, TracekitError

Row = dict[str, Any]


def measure(workshop: Workshop, cells: Sequence[Cell], on_piece: Callable[[], object] | None = None) -> list[Row]:
    """A row for each cell of a group, in order (`experiments.study.schema`). What cannot be replayed has an `error`."""
    bench = workshop.bench(cells[0].routing)
    rows: dict[str, Row] = {cell.key: described(cell) for cell in cells}
    together: dict[bytes, list[tuple[Cell, CacheSpec, Target]]] = {}
    for cell in cells:
        try:
            if bench.trace.tokens == 0:
                raise TraceError(f"{bench.trace.path} holds no tokens: nothing to replay")
            spec, target = prepared(bench, cell)
        except TracekitError as error:
            rows[cell.key]["error"] = str(error)
        else:
            together.setdefault(_meaning(spec), []).append((cell, spec, target))
    for found in together.values():
        spec = found[0][1]
        try:
            if scope := stack_scope(found, spec):
                for cell, _, target in found:
                    rows[cell.key] |= stacked(bench, cell, spec, target, scope)
                continue
            targets, hints = [target for *_, target in found], bench.hints(spec)
            done = time_all(bench.trace, spec, targets, bench.course, bench.demands, on_piece, hints)
            for (cell, _, target), (replayed, loaded) in zip(found, done, strict=True):
                rows[cell.key] |= timed(bench, cell, spec, target, replayed, loaded)
        except TracekitError as error:
            for cell, *_ in found:
                rows[cell.key] = described(cell) | {"error": str(error)}
    return [rows[cell.key] for cell in cells]


def described(cell: Cell) -> Row:
    """What is known of a cell beforehand."""
    machine = None if cell.machine is None else msgspec.json.encode(cell.machine, order="deterministic")
    return {
        "cell": cell.key,
        "trace": cell.routing.path,
        "trace_digest": cell.routing.digest,
        "batch": cell.routing.batch,
        "hardware": None if cell.machine is None else cell.machine.name,
        "hardware_digest": None if machine is None else hashlib.sha256(machine).hexdigest(),
        "model_shape": None if cell.shape is None else cell.shape.name,
        "plan": plan_name(cell.plan),
        "plan_toml": cell.plan.to_toml(),
        "capacity": cell.plan.cache.capacity,
        "eviction": cell.plan.eviction.policy,
        "prefetch": cell.plan.prefetch.predictor,
        "weights": cell.plan.weights.experts,
        "needs_future": needs_future(cell.plan),
    }


def prepared(bench: Bench, cell: Cell) -> tuple[CacheSpec, Target]:
    """What the cell's plan decides by, and what it is counted and timed as. PlanError where it would be no evidence."""
    check_evidence(bench.trace, cell.plan)
    spec, sizes = spec_of(bench.trace.manifest, cell.plan, cell.shape)
    return spec, Target(tuple(sizes), costs_of(bench, cell))


def costs_of(bench: Bench, cell: Cell) -> Costs | None:
    """The cell's machine at work."""
    if cell.machine is None:
        return None
    weights, lane = cell.plan.weights, cell.plan.compute.cpu_experts
    costs = model_costs(bench.trace.manifest, cell.machine, cell.shape, weights.experts, weights.attention, lane)
    return with_predictors(costs, cell.plan, cell.machine)


def _meaning(spec: CacheSpec) -> bytes:
    """Equal for specs that decide alike, of plans that are equal but for weights and lane."""
    return repr((spec.capacity, spec.pinned)).encode() + spec.size.tobytes()


def timed(bench: Bench, cell: Cell, spec: CacheSpec, target: Target, done: Replayed, loaded: np.ndarray) -> Row:
    """The results of a cell's pass."""
    trace, plan, machine, costs = bench.trace, cell.plan, cell.machine, target.costs
    sized = bool(target.sizes)
    total, decode = (counts_of(done, phases, sized=sized) for phases in ([0, 1], [DECODE]))
    time = None if machine is None or costs is None else time_of(done, costs, machine, cell.shape)
    warnings = advice(trace, plan, done, list(target.sizes), costs, time, independent=bench.independent)
    course = bench.course
    row = _counted(total, decode) | {
        "hits_cache": total.hits_by.cache,
        "hits_pinned": total.hits_by.pinned,
        "hits_prefetch": total.hits_by.prefetch,
        "loads": total.loads,
        "bypasses": total.bypasses,
        "prefetches": total.prefetches,
        "bytes_loaded": total.bytes_loaded,
        "decode_bytes_loaded": decode.bytes_loaded,
        "request": course.requests.tolist(),
        "request_tokens": course.tokens.tolist(),
        "request_bytes": course.shared(loaded).tolist() if sized else None,
    }
    if time is not None and costs is not None and machine is not None:
        estimates = find_estimates(trace, plan, costs, machine, cell.shape, done)
        warnings += fit_warnings(trace, plan, machine, cell.shape, costs)
        row |= {
            "time_scale": time.scale,
            "tokens_per_second": time.tokens_per_second,
            "ttft_ms": time.ttft_ms,
            "total_s": time.total_s,
            "compute_s": time.compute_s,
            "overhead_s": time.overhead_s,
            **{f"stall_{cause}_s": seconds for cause, seconds in time.stall_s.items()},
            "link_utilisation": time.link_utilisation,
            **{f"prefetch_{fate}": count for fate, count in time.prefetches.items()},
            "device_bytes": estimates.device_bytes,
            "host_bytes": estimates.host_bytes,
            "joules_per_token": estimates.joules_per_token,
            "cost_per_million_tokens": estimates.cost_per_million_tokens,
            "request_ns": course.shared(done.step_ns, costs.scale).tolist(),
            "request_p99_ns": course.percentile(done.step_ns, 0.99, costs.scale).tolist(),
        }
        if time.tpot_ms is not None:
            row |= {f"tpot_{name}_ms": getattr(time.tpot_ms, name) for name in ("p50", "p95", "p99")}
    else:
        row["device_bytes"] = bare_device_bytes(bench, cell)
    if bench.bounded(cell.bounds):
        row |= bound(bench, spec, costs, done)
    return row | {"warnings": warnings}


def _counted(total: Counts, decode: Counts) -> Row:
    return {
        "tokens": total.tokens,
        "decode_tokens": decode.tokens,
        "lookups": total.lookups,
        "hits": total.hits,
        "misses": total.misses,
        "hit_ratio": total.hit_ratio,
        "decode_lookups": decode.lookups,
        "decode_hits": decode.hits,
        "decode_hit_ratio": decode.hit_ratio,
    }


def bound(bench: Bench, spec: CacheSpec, costs: Costs | None, done: Replayed) -> Row:
    """The bounds beside a plan, as `find_bounds` finds them; what they share is computed once for all machines."""
    clairvoyant = replace(
        spec,
        eviction="belady-bypass",
        eviction_parameters=None,
        prefetch="none",
        prefetch_parameters=None,
        distance=1,
        count=2,
        into_cache=False,
        pinned=(),
    )
    known = bench.best(clairvoyant, timed=costs is not None)
    row: Row = {"bound_hit_ratio": known.hit_ratio}
    tokens = int(done.tokens[DECODE])
    if costs is not None and done.timeline is not None and tokens:
        assert known.decode_loads is not None
        copies = float(known.decode_loads @ costs.least_link_ns) * costs.scale
        work = float(done.timeline.spent[DECODE, :STALLS].sum()) * costs.scale
        link = tokens / (copies / 1e9) if copies else None
        compute = tokens / (work / 1e9) if work else None
        best = [speed for speed in (link, compute) if speed is not None]
        row |= {
            "link_bound_tokens_per_second": link,
            "compute_bound_tokens_per_second": compute,
            "bound_tokens_per_second": min(best) if best else None,
        }
    return row


def stack_scope(found: Sequence[tuple[Cell, CacheSpec, Target]], spec: CacheSpec) -> Scope | None:
    """The scope of the stack pass that answers for these cells, if one does: only counts are asked."""
    plan = found[0][0].plan
    only_counts = all(target.costs is None for *_, target in found)
    alike = len(set(spec.capacity)) == 1 and (spec.size == 1).all()
    if not only_counts or not alike or plan.prefetch.predictor != "none" or plan.eviction.parameters:
        return None
    if plan.eviction.policy not in STACK_CURVES:
        return None
    return "layer" if plan.capacity.per_layer else "global"


def stacked(bench: Bench, cell: Cell, spec: CacheSpec, target: Target, scope: Scope) -> Row:
    """The counts of a cell from the pass that finds all sizes at once."""
    found = bench.curve(cell.plan.eviction.policy, scope)
    slots = min(spec.capacity[0], found.hits.shape[1] - 1)
    hits, lookups = found.hits[:, slots], found.lookups
    sizes = set(target.sizes)
    size = sizes.pop() if len(sizes) == 1 else None
    total, decode = (int(hits.sum()), int(lookups.sum())), (int(hits[DECODE]), int(lookups[DECODE]))
    row: Row = {
        "tokens": bench.trace.tokens,
        "decode_tokens": len(bench.course.step),
        "lookups": total[1],
        "hits": total[0],
        "misses": total[1] - total[0],
        "hit_ratio": total[0] / total[1] if total[1] else 0.0,
        "decode_lookups": decode[1],
        "decode_hits": decode[0],
        "decode_hit_ratio": decode[0] / decode[1] if decode[1] else 0.0,
        "hits_cache": total[0],
        "hits_pinned": 0,
        "hits_prefetch": 0,
        "prefetches": 0,
        "bytes_loaded": None if size is None else (total[1] - total[0]) * size,
        "decode_bytes_loaded": None if size is None else (decode[1] - decode[0]) * size,
        "device_bytes": bare_device_bytes(bench, cell),
    }
    phases = Replayed(phase=bench.course.phase)
    phases.kinds[:, HIT] = found.lookups  # of advice, only how many lookups there are
    phases.tokens[DECODE] = len(bench.course.step)
    row["warnings"] = advice(
        bench.trace, cell.plan, phases, list(target.sizes), None, None, independent=bench.independent
    )
    if bench.bounded(cell.bounds):
        row |= bound(bench, spec, None, Replayed())
    return row


def bare_device_bytes(bench: Bench, cell: Cell) -> int | None:
    """Device memory of a plan where no machine is given: sizes do not depend on which it is."""
    shape: ModelShape | None = cell.shape
    try:
        costs = costs_of(bench, replace(cell, machine=load_hardware("h100")))
    except TracekitError:  # sizes are unknown
        return None
    assert costs is not None
    return device_bytes(bench.trace, cell.plan, costs, shape)

"""Measuring cells: the rows of a group of cells, from as few passes over the trace as their decisions allow."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from engine.curves.stack_curve import STACK_CURVES, Scope
from engine.decisions.evidence import check_evidence
from engine.decisions.rerouted import FIRST_ORDER
from engine.replay.advice import TIERED, DecodeWork, advice, first_order_caution, fit_warnings, prefetch_warnings
from engine.replay.bounds import bounding_costs, bounds_of, clairvoyant, fewest_copies
from engine.replay.copies import LOOKUPS
from engine.replay.estimates import find_estimates
from engine.replay.memory import device_memory, load_of
from engine.replay.passes import Replayed, run
from engine.replay.result import AlteredRouting, altered_routing
from engine.replay.setting import Setting
from engine.replay.summary import counts_of, time_of
from experiments.study.cells import Cell
from experiments.study.grid import needs_future, plan_name, tiers_name
from experiments.study.shared import Played, SharedRouting, SharedRoutings
from policies.events import ADMIT, HOST, LOAD, PREFETCH
from tracekit.caution import Caution
from tracekit.errors import CapacityError, TraceError, TracekitError
from tracekit.rows import DECODE, PREFILL

Row = dict[str, Any]


def measure(shared: SharedRoutings, cells: Sequence[Cell], on_piece: Callable[[], object] | None = None) -> list[Row]:
    """A row for each cell of a group, in order (`experiments.study.schema`). What cannot be replayed has an `error`."""
    routing = shared.of(cells[0].routing)
    rows: dict[str, Row] = {cell.key: described(cell) for cell in cells}
    together: dict[tuple[str, bytes], list[tuple[Cell, Setting]]] = {}
    for cell in cells:
        try:
            if routing.trace.tokens == 0:
                raise TraceError(f"{routing.trace.path} holds no tokens: nothing to replay")
            if cell.refused is not None:
                raise CapacityError(cell.refused)
            setting = setting_of(routing, cell)
        except TracekitError as error:
            rows[cell.key]["error"] = str(error)
        else:
            together.setdefault(setting.spec.meaning, []).append((cell, setting))
    for found in together.values():
        spec = found[0][1].spec
        try:
            if (scope := stack_scope([setting for _, setting in found])) and routing.tells_requests(scope):
                for cell, setting in found:
                    rows[cell.key] |= stacked(routing, cell, setting, scope)
                continue
            targets = [setting.target for _, setting in found]
            report = None if on_piece is None else lambda tokens: on_piece()
            played = routing.played(found[0][1], report)
            steps, demands, hints = routing.requests.steps, played.demands, played.hints(spec)
            done = run(played.trace, spec, targets, steps=steps, demands=demands, hints=hints, progress=report)
            for (cell, setting), replayed in zip(found, done, strict=True):
                rows[cell.key] |= replayed_row(routing, cell, setting, replayed, played)
        except TracekitError as error:
            for cell, _ in found:
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
        "engine": None if cell.machine is None else cell.machine.engine.name,
        "hardware_digest": None if machine is None else hashlib.sha256(machine).hexdigest(),
        "model_shape": None if cell.shape is None else cell.shape.name,
        "plan": plan_name(cell.plan),
        "plan_toml": cell.plan.to_toml(),
        "capacity": cell.plan.cache.capacity,
        "capacity_given": cell.capacity_given or cell.plan.cache.capacity,
        "eviction": cell.plan.eviction.policy,
        "prefetch": cell.plan.prefetch.predictor,
        "routing": cell.plan.routing.policy,
        "precision": tiers_name(cell.plan) or None,
        "weights": cell.plan.weights.experts,
        "needs_future": needs_future(cell.plan),
        "quality_loss": None if cell.loss is None else cell.loss.value,
        "quality_loss_low": None if cell.loss is None else cell.loss.low,
        "quality_loss_high": None if cell.loss is None else cell.loss.high,
    }


def setting_of(routing: SharedRouting, cell: Cell) -> Setting:
    """The cell's plan on its machine. PlanError where it would be no evidence."""
    check_evidence(routing.trace, cell.plan)
    load = load_of(cell.plan, routing.requests.steps)
    return Setting.of(routing.trace.manifest, cell.plan, cell.machine, cell.shape, reshape=cell.reshape, load=load)


def replayed_row(
    routing: SharedRouting, cell: Cell, setting: Setting, done: Replayed, played: Played | None = None
) -> Row:
    """The results of a cell's pass; `played`: the routing of that pass, where it is not the recorded one."""
    played = played or routing.played(setting)
    requests, sized = routing.requests, bool(setting.sizes)
    total, decode = (counts_of(done, phases, sized=sized) for phases in ([PREFILL, DECODE], [DECODE]))
    time = time_of(setting, done)
    warnings = advice(routing.trace, setting, DecodeWork.of(done), time, independent=routing.independent)
    row: Row = {name: getattr(total, name) for name in COUNTED}
    row |= {f"decode_{name}": getattr(decode, name) for name in DECODE_COUNTED}
    row |= {f"hits_{name}": getattr(total.hits_by, name) for name in ("cache", "pinned", "prefetch")}
    row |= {
        "loads": total.loads,
        "bypasses": total.bypasses,
        "hosted": total.hosted,
        "admitted": total.admitted,
        "prefetches": total.prefetches,
        "bytes_loaded": total.bytes_loaded,
        "decode_bytes_loaded": decode.bytes_loaded,
        "request": requests.requests.tolist(),
        "request_tokens": requests.tokens.tolist(),
        **by_request(routing, done),
        "request_bytes": requests.of_each(done.step_bytes).tolist() if sized else None,
        "device_bytes": device_memory(setting).total if sized else None,
    }
    if played.altered is not None:
        row |= {"routing_label": FIRST_ORDER, **shares_of(altered_routing("", FIRST_ORDER, played.altered))}
        warnings.append(first_order_caution(cell.plan.routing.policy))
    if done.step_copies.size:
        row |= {"low_share": float(done.step_copies[:, 1, LOOKUPS].sum()) / max(total.lookups, 1)}
        warnings.append(TIERED)
    if time is not None:
        warnings += prefetch_warnings(
            played.trace, setting, done, time, steps=routing.requests.steps, demands=played.demands
        )
        estimates = find_estimates(setting, done)
        warnings += fit_warnings(setting)
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
            "host_bytes": estimates.host_bytes,
            "joules_per_token": estimates.joules_per_token,
            "cost_per_million_tokens": estimates.cost_per_million_tokens,
            "request_ns": requests.of_each(done.step_ns, setting.scale).tolist(),
            "request_p99_ns": requests.percentile(done.step_ns, 0.99, setting.scale).tolist(),
        }
        if time.tpot_ms is not None:
            row |= {f"tpot_{name}_ms": getattr(time.tpot_ms, name) for name in ("p50", "p95", "p99")}
    return row | bound(routing, cell, setting, done) | warned(warnings)


def shares_of(found: AlteredRouting) -> Row:
    """The columns that say how much a routing policy altered."""
    return {name: getattr(found, name) for name in ("altered_share", "dropped_share", "dropped_weight")}


def by_request(routing: SharedRouting, done: Replayed) -> Row:
    """Lookups, misses and loads of each request, of decode steps."""
    kinds, each = done.step_kinds, routing.requests.of_each
    missed = kinds[:, HOST : ADMIT + 1].sum(axis=1)
    return {
        "request_lookups": each(kinds[:, : ADMIT + 1].sum(axis=1)).tolist(),
        "request_misses": each(missed).tolist(),
        "request_loads": each(kinds[:, LOAD : PREFETCH + 1].sum(axis=1)).tolist(),
    }


def warned(found: Sequence[Caution]) -> Row:
    """Cautions as two columns, of as many texts."""
    return {"warnings": [one.text for one in found], "warning_codes": [one.code for one in found]}


COUNTED = ("tokens", "lookups", "hits", "misses", "hit_ratio")
DECODE_COUNTED = ("tokens", "lookups", "hits", "hit_ratio")


def bound(routing: SharedRouting, cell: Cell, setting: Setting, done: Replayed | None) -> Row:
    """The bounds beside a plan, as `find_bounds` finds them; what they share is computed once for all machines."""
    if not routing.bounded(cell.bounds) or cell.plan.precision is not None:
        return {}
    best = clairvoyant(setting.spec)
    known = routing.best(best, timed=setting.costs is not None)
    counted = fewest_copies(known.done, best, prefetched=setting.spec.prefetch != "none")
    row: Row = {"bound_hit_ratio": counted.hit_ratio, "bound_copies": counted.copies}
    if known.fewest is None or done is None or not done.tokens[DECODE]:
        return row
    works = routing.least_work(bounding_costs(setting))
    found = bounds_of(counted, known.fewest, setting, works, int(done.tokens[DECODE]))
    return row | {
        "link_bound_tokens_per_second": found.link_tokens_per_second,
        "compute_bound_tokens_per_second": found.compute_tokens_per_second,
        "bound_tokens_per_second": found.best_tokens_per_second,
        "hardware_bound_tokens_per_second": None if found.hardware is None else found.hardware.best_tokens_per_second,
    }


def stack_scope(settings: Sequence[Setting]) -> Scope | None:
    """The scope of the stack pass that answers for these cells, if one does: only counts are asked."""
    plan, spec = settings[0].plan, settings[0].spec
    only_counts = all(setting.costs is None for setting in settings)
    alike = len(set(spec.capacity)) == 1 and (spec.size == 1).all()
    begins = spec.warm is not None or spec.begins or spec.pinned or spec.domains is not None
    if spec.reset or begins or spec.serves_otherwise or not plan.exact:
        return None
    if not only_counts or not alike or plan.prefetch.predictor != "none" or plan.eviction.parameters:
        return None
    if plan.eviction.policy not in STACK_CURVES:
        return None
    return "layer" if plan.per_layer else "global"


def stacked(routing: SharedRouting, cell: Cell, setting: Setting, scope: Scope) -> Row:
    """The counts of a cell from the pass that finds all sizes at once."""
    found, requests = routing.curve(setting.plan.eviction.policy, scope), routing.requests
    slots = min(setting.spec.capacity[0], found.hits.shape[1] - 1)
    hits = found.hits[:, slots]
    size = setting.sizes[0] if len(set(setting.sizes)) == 1 else None
    own = found.by_request
    assert own is not None  # `tells_requests`
    missed = own.lookups - own.hits[:, slots]
    misses = np.rint(missed).astype(np.int64).tolist()
    row: Row = {
        "tokens": routing.trace.tokens,
        "decode_tokens": int((requests.steps.phase[requests.step] == DECODE).sum()),
        "hits_cache": int(hits.sum()),
        "hits_pinned": 0,
        "hits_prefetch": 0,
        "prefetches": 0,
        "misses": int((found.lookups - hits).sum()),
        "request": requests.requests.tolist(),
        "request_tokens": requests.tokens.tolist(),
        "request_lookups": np.rint(own.lookups).astype(np.int64).tolist(),
        "request_misses": misses,
        "request_loads": misses,
        "request_bytes": None if size is None else np.rint(missed * size).astype(np.int64).tolist(),
        "device_bytes": device_memory(setting).total if setting.sizes else None,
    }
    for prefix, phases in (("", [PREFILL, DECODE]), ("decode_", [DECODE])):
        hit, lookups = int(hits[phases].sum()), int(found.lookups[phases].sum())
        row |= {
            f"{prefix}lookups": lookups,
            f"{prefix}hits": hit,
            f"{prefix}hit_ratio": hit / lookups if lookups else 0.0,
            f"{prefix}bytes_loaded": None if size is None else (lookups - hit) * size,
        }
    steps = int((routing.requests.steps.phase == DECODE).sum())
    decode = DecodeWork(steps, row["decode_tokens"], row["decode_lookups"])
    warnings = advice(routing.trace, setting, decode, independent=routing.independent)
    return row | bound(routing, cell, setting, None) | warned(warnings)

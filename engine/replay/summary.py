"""A finished pass as the figures of a result: counts by cause, time by part."""

from collections.abc import Sequence

import numpy as np

from engine.replay.memory import fits
from engine.replay.passes import Replayed
from engine.replay.result import Counts, HitsBy, TierCounts, Time, Tpot
from engine.replay.setting import Setting
from engine.simulator.timeline import CAUSES, LATE, STALLS, USEFUL, WASTED
from policies.events import ADMIT, BYPASS, HIT_PREFETCHED, HOST, LOAD, PREFETCH
from policies.tiered_cache import TIERS
from tracekit.rows import DECODE


def counts_of(done: Replayed, phases: Sequence[int], *, sized: bool) -> Counts:
    """The counts of these phases; bytes only if they are known."""
    kinds = done.kinds[list(phases)].sum(axis=0)
    hits = int(kinds[: HIT_PREFETCHED + 1].sum())
    misses = int(kinds[HOST : ADMIT + 1].sum())
    return Counts(
        tokens=int(done.tokens[list(phases)].sum()),
        lookups=hits + misses,
        hits=hits,
        misses=misses,
        hit_ratio=hits / (hits + misses) if hits + misses else 0.0,
        hits_by=HitsBy(cache=int(kinds[0]), pinned=int(kinds[1]), prefetch=int(kinds[2])),
        loads=int(kinds[LOAD]),
        bypasses=int(kinds[BYPASS]),
        hosted=int(kinds[HOST] + kinds[ADMIT]),
        admitted=int(kinds[ADMIT]),
        prefetches=int(kinds[PREFETCH]),
        bytes_loaded=int(done.loaded[list(phases)].sum()) if sized else None,
    )


def tiers_of(done: Replayed, *, sized: bool) -> dict[str, TierCounts] | None:
    """The counts by tier, where experts have two copies."""
    if not done.step_copies.size:
        return None
    return {
        tier: TierCounts(lookups=lookups, hits=hits, prefetches=prefetches, bytes_loaded=copied if sized else None)
        for tier, (lookups, hits, prefetches, copied) in zip(TIERS, done.step_copies.sum(axis=0).tolist(), strict=True)
    }


def time_of(setting: Setting, done: Replayed) -> Time | None:
    """What a pass took on the setting's machine; None without one."""
    costs, machine, shape = setting.costs, setting.machine, setting.shape
    if costs is None or machine is None or done.timeline is None:
        return None
    decode = done.step_ns[done.phase == DECODE] * costs.scale
    prefill = done.step_ns[done.phase != DECODE] * costs.scale
    spent = {
        cause: int(ns) * costs.scale / 1e9 for cause, ns in zip(CAUSES, done.timeline.spent.sum(axis=0), strict=True)
    }
    total = float(done.step_ns.sum()) * costs.scale / 1e9
    possible = fits(setting)
    timed = len(decode) and possible
    percentiles = [float(p) / 1e6 for p in np.percentile(decode, (50, 95, 99))] if timed else []
    parts = {
        "compute": spent["dense"] + spent["experts"] + spent["dequantisation"],
        "overhead": spent["overhead"],
        "stall": sum(spent[cause] for cause in CAUSES[STALLS:]),
    }
    return Time(
        hardware=machine.name,
        engine=machine.engine.name,
        model_shape=None if shape is None else shape.name,
        scale=costs.scale,
        fits=possible,
        total_s=total,
        tokens_per_second=float(done.tokens[DECODE] / (decode.sum() / 1e9)) if timed else None,
        tpot_ms=Tpot(p50=percentiles[0], p95=percentiles[1], p99=percentiles[2]) if percentiles else None,
        ttft_ms=float(prefill.mean()) / 1e6 if len(prefill) and possible else None,
        largest_part=max(parts, key=parts.__getitem__),
        compute_s=parts["compute"],
        overhead_s=parts["overhead"],
        stall_s={cause: spent[cause] for cause in CAUSES[STALLS:]},
        link_utilisation=done.timeline.link_busy_ns * costs.scale / 1e9 / total if total else 0.0,
        prefetches=prefetch_fates(done),
    )


def prefetch_fates(done: Replayed) -> dict[str, int]:
    """What became of the prefetches of a timed pass."""
    assert done.timeline is not None
    fates = {"useful": USEFUL, "late": LATE, "wasted": WASTED}
    return {name: int(done.timeline.prefetches[place]) for name, place in fates.items()}

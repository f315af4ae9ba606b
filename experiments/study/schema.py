"""The columns of a study's results, a row per cell: name, type, meaning (docs/studies.md prints this table)."""

import polars as pl

from engine.replay.result import Regret
from engine.replay.sensitivities import PARTS, TIMES
from engine.simulator.timeline import CAUSES, STALLS

INT, REAL, TEXT, BOOL = pl.Int64, pl.Float64, pl.String, pl.Boolean

Type = pl.DataType | type[pl.DataType]
Columns = dict[str, Type]
"""The columns of a table, with their types."""
COLUMNS: tuple[tuple[str, Type, str], ...] = (
    ("cell", TEXT, "sha256 of everything the row follows from"),
    ("error", TEXT, "why the plan could not be replayed; all results are then missing"),
    ("trace", TEXT, "the trace, as the study's file names it"),
    ("trace_digest", TEXT, "what the trace holds"),
    ("batch", INT, "requests decoded together (`replay --batch`); missing: as recorded"),
    ("hardware", TEXT, "name of the machine's profile; missing: hits and bytes only"),
    ("engine", TEXT, "name of the engine's profile; missing as hardware is"),
    ("hardware_digest", TEXT, "sha256 of both profiles"),
    ("model_shape", TEXT, "name of the model whose sizes experts have; missing: the trace's own"),
    ("plan", TEXT, "the plan in a few words"),
    ("plan_toml", TEXT, "the plan as a file"),
    ("capacity", TEXT, "cache.capacity"),
    ("capacity_given", TEXT, "the same as the study's file says it: `auto`, where capacity is what that became"),
    ("eviction", TEXT, "eviction.policy"),
    ("prefetch", TEXT, "prefetch.predictor"),
    ("routing", TEXT, "routing.policy"),
    ("routing_label", TEXT, "`first-order estimate` where that alters the gates' choices; missing: it does not"),
    ("altered_share", REAL, "share of the gates' choices that it altered"),
    ("dropped_share", REAL, "share that it dropped"),
    ("dropped_weight", REAL, "share of the gates' weights that the dropped ones had"),
    ("weights", TEXT, "weights.experts"),
    ("precision", TEXT, "low copies, and the rule of which copy serves; missing: experts have one format"),
    ("low_share", REAL, "share of lookups that low copies served"),
    ("needs_future", BOOL, "whether the plan knows the future, which no machine does"),
    ("quality_loss", REAL, "measured loss of quality, a share of bits per byte; missing: it was not measured"),
    ("quality_loss_low", REAL, "lower end of its interval; missing: too few documents"),
    ("quality_loss_high", REAL, "upper end of the interval"),
    ("tokens", INT, "tokens replayed"),
    ("decode_tokens", INT, "of these, in decode steps"),
    ("lookups", INT, "demanded experts"),
    ("hits", INT, "lookups that found their expert on the device or on its way"),
    ("misses", INT, "lookups that did not"),
    ("hit_ratio", REAL, "hits / lookups"),
    ("decode_lookups", INT, "lookups of decode steps"),
    ("decode_hits", INT, "hits of decode steps"),
    ("decode_hit_ratio", REAL, "decode_hits / decode_lookups"),
    ("hits_cache", INT, "hits kept by the cache"),
    ("hits_pinned", INT, "hits of pinned experts"),
    ("hits_prefetch", INT, "hits that a prefetch brought"),
    ("loads", INT, "demand loads into the cache; missing where one pass answered for all sizes"),
    ("bypasses", INT, "demand loads that were not kept"),
    ("hosted", INT, "misses that the host computed"),
    ("admitted", INT, "of these, experts that were copied into the cache meanwhile"),
    ("prefetches", INT, "experts loaded ahead"),
    ("bytes_loaded", INT, "bytes of all loads, of the trace's layers; missing if the size of an expert is unknown"),
    ("decode_bytes_loaded", INT, "bytes of the loads of decode steps"),
    (
        "time_scale",
        REAL,
        "MoE layers of the model over those of the trace: times are of the model, counts of the trace",
    ),
    ("tokens_per_second", REAL, "decode tokens over decode time"),
    ("tpot_p50_ms", REAL, "time per decode step, median"),
    ("tpot_p95_ms", REAL, "95th percentile"),
    ("tpot_p99_ms", REAL, "99th percentile"),
    ("ttft_ms", REAL, "mean time of a prefill step"),
    ("total_s", REAL, "time of all steps"),
    ("compute_s", REAL, "of it, computing"),
    ("overhead_s", REAL, "fixed overheads"),
    *((f"stall_{cause}_s", REAL, f"waiting: {cause.replace('_', ' ')}") for cause in CAUSES[STALLS:]),
    ("link_utilisation", REAL, "share of the time in which a copy was under way"),
    ("prefetch_useful", INT, "prefetches there in time"),
    ("prefetch_late", INT, "prefetches that were waited for"),
    ("prefetch_wasted", INT, "prefetches given up unused"),
    (
        "device_bytes",
        INT,
        "device memory: slots, staging and, with a shape, all else; missing if sizes are unknown",
    ),
    ("host_bytes", INT, "host memory for experts"),
    ("joules_per_token", REAL, "estimate, where the profile has power"),
    ("cost_per_million_tokens", REAL, "estimate, where the profile has a price"),
    (
        "bound_hit_ratio",
        REAL,
        "no plan without prefetching hits more; missing for one that prefetches; all bounds are of unaltered routing",
    ),
    (
        "bound_copies",
        INT,
        "no plan copies fewer experts, on demand and ahead of it together, or has the host compute fewer instead",
    ),
    ("bound_tokens_per_second", REAL, "no plan of that capacity is faster under this engine"),
    ("link_bound_tokens_per_second", REAL, "of the fewest copies alone"),
    ("compute_bound_tokens_per_second", REAL, "of computing alone"),
    (
        "hardware_bound_tokens_per_second",
        REAL,
        "no plan of that capacity is faster under any engine, CPU helping",
    ),
    ("request", pl.List(INT), "requests with decode tokens, ascending; all of a trace that decodes nothing"),
    ("request_tokens", pl.List(INT), "decode tokens of each"),
    ("request_ns", pl.List(INT), "decode time of each: a step's time is shared by its tokens evenly"),
    ("request_p99_ns", pl.List(INT), "99th percentile of the times of each request's decode steps"),
    ("request_bytes", pl.List(INT), "bytes loaded for each, shared as time is; missing if sizes are unknown"),
    ("request_lookups", pl.List(INT), "demanded experts of each, shared as time is"),
    ("request_misses", pl.List(INT), "of these, not found on the device"),
    ("request_loads", pl.List(INT), "experts loaded for each, ahead or on demand"),
    ("warnings", pl.List(TEXT), "what to know before believing the row"),
    ("warning_codes", pl.List(TEXT), "what kind each of these is: tracekit.caution"),
)
SCHEMA: Columns = {name: kind for name, kind, _ in COLUMNS}

CURVES: Columns = {
    "trace": TEXT,
    "batch": INT,
    "scope": TEXT,
    "policy": TEXT,
    "needs_future": BOOL,
    "slots": INT,
    "share": REAL,
    "hit_ratio": REAL,
    "decode_hit_ratio": REAL,
    "low": REAL,
    "high": REAL,
}
"""Hit ratio against cache size, every policy without prefetching at the same sizes; `low` and `high` are the interval
of `decode_hit_ratio` (of `hit_ratio`, where a trace decodes nothing)."""

EFFECT_COLUMNS: tuple[tuple[str, Type, str], ...] = (
    ("hardware", TEXT, "as in results.parquet"),
    ("engine", TEXT, "as in results.parquet"),
    ("model_shape", TEXT, "as in results.parquet"),
    ("batch", INT, "as in results.parquet"),
    ("capacity", TEXT, "cache.capacity, of both plans"),
    ("weights", TEXT, "weights.experts, of both plans"),
    ("policy", TEXT, "eviction and prefetching"),
    ("plan", TEXT, "the plan in a few words"),
    ("plan_toml", TEXT, "the plan as a file"),
    ("baseline", TEXT, "eviction and prefetching of the plan it is compared with"),
    ("needs_future", BOOL, "whether the plan is a bound: its effect is what is left to win"),
    ("quantity", TEXT, "what is compared"),
    ("unit", TEXT, "of value and baseline_value"),
    ("value", REAL, "what the objective asks for"),
    ("baseline_value", REAL, "the same of the baseline"),
    ("effect", REAL, "how much better, as a share; of hit ratios the difference"),
    ("low", REAL, "lower end of its interval; missing: too few requests for one that would hold"),
    ("high", REAL, "upper end"),
    ("requests", INT, "requests that both served"),
    ("effective", REAL, "as how many equal requests, that differ, they count"),
    ("wins", INT, "of these cheaper than with the baseline"),
    ("p", REAL, "how often plans that are alike would differ as much"),
    ("corrected", REAL, "the same for all comparisons of the setting together (Holm); missing for bounds"),
    ("outcome", TEXT, "better, worse, level, none (not shown), identical, too few; bound for bounds"),
    ("verdict", TEXT, "the same in words"),
)
EFFECTS: Columns = {name: kind for name, kind, _ in EFFECT_COLUMNS}
"""Each plan against the baseline at its capacity (experiments.study.effects)."""

BETTER = {(part, float(times)): f"{part}_x{float(times):g}_tokens_per_second" for part in PARTS for times in TIMES}
"""The columns of sensitivities: decode speed if that part of the machine were so many times better."""
REGRET: Columns = {
    "cell": TEXT,
    **{name: INT for name in Regret.__struct_fields__},
    **{name: REAL for name in BETTER.values()},
}
"""Regret and sensitivities of the best cells (engine.replay.result.Regret, engine.replay.sensitivities)."""

SEARCH_COLUMNS: tuple[tuple[str, Type, str], ...] = (
    ("round", INT, "from 1"),
    ("share", REAL, "of each trace's decode steps that were replayed"),
    ("hardware", TEXT, "as in results.parquet"),
    ("engine", TEXT, "as in results.parquet"),
    ("hardware_digest", TEXT, "as in results.parquet"),
    ("model_shape", TEXT, "as in results.parquet"),
    ("batch", INT, "as in results.parquet"),
    ("plan", TEXT, "the plan in a few words"),
    ("plan_toml", TEXT, "the plan as a file"),
    ("value", REAL, "what the objective asks for, on this beginning; missing: could not be replayed on every trace"),
    ("place", INT, "from 1, among the plans that fit and need no foresight"),
    ("outcome", TEXT, "kept, baseline (kept to compare with), bound (kept), pruned, too large, too lossy, or failed"),
)
SEARCH: Columns = {name: kind for name, kind, _ in SEARCH_COLUMNS}
"""What a search made of each plan in each round (experiments.study.search)."""

EXPERTS: Columns = {"trace": TEXT, "model": TEXT, "layer": INT, "expert": INT, "lookups": INT, "share": REAL}
"""Of each trace as recorded: how often each expert is looked up, and its share of its layer's lookups."""

TIMELINE: Columns = {
    **{"hardware": TEXT, "engine": TEXT, "model_shape": TEXT, "batch": INT, "plan": TEXT, "trace": TEXT},
    **{"step": INT, "layer": INT, "layers": INT, "of_layers": INT, "lane": TEXT, "kind": TEXT, "label": TEXT},
    **{"begin_ms": REAL, "end_ms": REAL},
}
"""One decode step under each winner: what ran where and when, of its first `layers` layers."""

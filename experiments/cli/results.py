"""A replay's result as rows for a table."""

from collections.abc import Sequence

import msgspec

from engine.hardware.engine_profile import CALIBRATED
from engine.replay.against_recorded import Agreement
from engine.replay.result import AlteredRouting, Estimates, Regret, Result, Sensitivity, Time
from experiments.cli.console import number, percent
from experiments.statistics.speeds import MODELLED


def result_rows(result: Result, interval: str = "") -> list[tuple[str, str]]:
    """What a person wants to know of a replay, in reading order; `interval` is of its speed, in words."""
    prefetched = f", {result.hits_by.prefetch} of them prefetched" if result.prefetches else ""
    rows = [
        ("tokens", f"{result.tokens} ({result.phases.decode.tokens} decode)"),
        ("lookups", str(result.lookups)),
        ("hits", f"{result.hits}{prefetched}"),
        ("hit ratio", percent(result.hit_ratio)),
        ("hit ratio, decode", percent(result.phases.decode.hit_ratio)),
        ("demand loads", f"{result.misses - result.hosted} ({result.bypasses} bypassed)"),
        *([("computed on the host", f"{result.hosted} ({result.admitted} admitted)")] if result.hosted else []),
        ("prefetches", str(result.prefetches)),
    ]
    if result.bytes_loaded is not None:
        layers = "" if result.time is None or result.time.scale == 1 else ", of the trace's layers only"
        rows.append(("loaded", f"{result.bytes_loaded / 2**20:.1f} MiB{layers}"))
    if result.routing is not None:
        rows += routing_rows(result.routing)
    if result.precision is not None:
        rows += tier_rows(result)
    if result.bounds is not None:
        of = "" if result.bounds.routing is None else f", {result.bounds.routing} routing"
        if result.bounds.hit_ratio is not None:
            rows.append((f"bound of the hit ratio{of}", percent(result.bounds.hit_ratio)))
        rows.append((f"bound of copies, prefetches included{of}", str(result.bounds.copies)))
    if (switching := result.switching) is not None:
        copied = "" if switching.bytes_loaded is None else f", {switching.bytes_loaded / 2**20:.1f} MiB"
        rows.append(("switches of domain", f"{switching.switches}, {switching.copies} copies{copied}"))
    time = result.time
    if time is not None:
        rows += [
            ("hardware", time.hardware + (f" at {time.model_shape}'s shape" if time.model_shape else "")),
            ("engine", time.engine),
            ("decode tokens/s", speed_text(time, interval, calibrated=is_calibrated(result))),
            ("time to first token", "-" if time.ttft_ms is None else f"{time.ttft_ms:.1f} ms"),
        ]
        if time.tpot_ms is not None:
            tpot = time.tpot_ms
            rows.append(("time per token p50 / p95 / p99", f"{tpot.p50:.1f} / {tpot.p95:.1f} / {tpot.p99:.1f} ms"))
        stalls = [f"{cause.replace('_', ' ')} {seconds:.3f}" for cause, seconds in time.stall_s.items() if seconds]
        rows += [
            ("compute / overhead", f"{time.compute_s:.3f} / {time.overhead_s:.3f} s"),
            ("stalls (s)", ", ".join(stalls) or "none"),
            ("link utilisation", percent(time.link_utilisation)),
        ]
        if result.prefetches:
            fates = ", ".join(f"{count} {fate}" for fate, count in time.prefetches.items())
            rows.append(("prefetches came", fates))
        if result.bounds is not None:
            of = "" if result.bounds.routing is None else f" of {result.bounds.routing} routing"
            rows.append((f"bound{of} under {time.engine}, tokens/s", number(result.bounds.best_tokens_per_second, 3)))
            if result.bounds.hardware is not None:
                speed = number(result.bounds.hardware.best_tokens_per_second, 3)
                rows.append((f"bound{of} of the hardware, any engine, tokens/s", speed))
    if result.regret is not None:
        rows += regret_rows(result.regret)
    if result.sensitivities:
        rows += sensitivity_rows(result.sensitivities)
    if result.estimates is not None:
        rows += estimate_rows(result.estimates)
    return rows


def routing_rows(found: AlteredRouting) -> list[tuple[str, str]]:
    """What a routing policy altered, and how that is known."""
    return [
        (f"routing: {found.label}", found.policy),
        (
            "choices altered / dropped",
            f"{percent(found.altered_share)} / {percent(found.dropped_share)} of {found.choices}",
        ),
        ("  their share of gate weight", f"{percent(found.altered_weight)} / {percent(found.dropped_weight)}"),
    ]


def tier_rows(result: Result) -> list[tuple[str, str]]:
    """What each of an expert's two copies served."""
    rows = []
    for tier, counts in (result.precision or {}).items():
        share = percent(counts.lookups / result.lookups if result.lookups else None)
        loaded = "" if counts.bytes_loaded is None else f", {counts.bytes_loaded / 2**20:.1f} MiB loaded"
        hits = percent(counts.hits / counts.lookups if counts.lookups else None)
        rows.append((f"served by {tier} copies", f"{counts.lookups} ({share}), {hits} of them hits{loaded}"))
    return rows


def is_calibrated(result: Result) -> bool:
    """Whether the machine was measured, and the engine is the one that was measured on it."""
    time, machine = result.time, result.provenance["hardware"]
    return time is not None and machine["calibrated"] and time.engine == CALIBRATED


def speed_text(time: Time, interval: str, *, calibrated: bool) -> str:
    """Tokens per second between which and which, whether anything of that was measured, and what the number mostly is,
    if that is an assumption about software."""
    if not time.fits:
        return "none: the plan does not fit"
    if time.tokens_per_second is None:
        return "-"
    text = f"{time.tokens_per_second:.3f}" + (f" {interval}" if interval else "")
    text += "" if calibrated else f", {MODELLED}"
    if time.largest_part == "overhead" and time.engine != CALIBRATED:
        text += f" ({percent(time.overhead_s / time.total_s)} of the time is overhead assumed of {time.engine})"
    return text


def agreement_rows(found: Agreement) -> list[tuple[str, str]]:
    """How far a replay's decisions are those that the traced engine took."""
    share = percent(found.agree / found.lookups if found.lookups else None)
    rows = [
        ("lookups as the engine recorded them", f"{found.agree} of {found.lookups} ({share})"),
        ("resident in its cache / in the replay's", f"{found.recorded_hits} / {found.replayed_hits}"),
    ]
    if (first := found.first_disagreement) is not None:
        was, replayed = ("resident" if held else "missing" for held in (first.recorded, first.replayed))
        where = f"step {first.step}, MoE layer {first.layer}, expert {first.expert}"
        rows.append(("first disagreement", f"{where}: {was} there, {replayed} here"))
    return rows


def regret_rows(regret: Regret) -> list[tuple[str, str]]:
    """What keeps a step from the time of computing alone, in milliseconds of a step; without parts that are nothing."""
    named = {name.removesuffix("_ns"): value for name, value in msgspec.structs.asdict(regret).items()}
    steps, total = named.pop("steps"), named.pop("total")
    rows = [("a step takes longer than computing alone by", f"{total / steps / 1e6:.3f} ms")]
    return rows + [
        (f"  {name.replace('_', ' ')}", f"{nanoseconds / steps / 1e6:+.3f} ms")
        for name, nanoseconds in named.items()
        if nanoseconds
    ]


def sensitivity_rows(found: Sequence[Sensitivity]) -> list[tuple[str, str]]:
    """What would help most, first."""
    parts: dict[str, list[Sensitivity]] = {}
    for one in sorted(found, key=lambda one: one.times):
        parts.setdefault(one.part, []).append(one)
    ranked = sorted(parts.values(), key=lambda of_part: -of_part[-1].gain)
    titles = " / ".join(f"{one.times:g}" for one in ranked[0])
    rows = [("what would help most, times better", titles)]
    for of_part in ranked:
        speeds = " / ".join(number(one.tokens_per_second, 3) for one in of_part)
        gains = " / ".join(f"{100 * one.gain:+.1f} %" for one in of_part)
        rows.append((f"  {of_part[0].part.replace('_', ' ')}", f"{speeds} tokens/s ({gains})"))
    return rows


def estimate_rows(estimates: Estimates) -> list[tuple[str, str]]:
    """Memory, energy and cost, those that are known."""
    rows = [
        ("memory, device / host", f"{estimates.device_bytes / 2**30:.2f} / {estimates.host_bytes / 2**30:.2f} GiB"),
        *(
            (f"  {name.replace('_', ' ')}", f"{size / 2**30:.2f} GiB")
            for name, size in estimates.device_parts.items()
            if size
        ),
    ]
    if estimates.joules_per_token is not None:
        rows.append(("energy per token (estimate)", f"{estimates.joules_per_token:.1f} J"))
    if estimates.cost_per_million_tokens is not None:
        cost = f"{estimates.currency} {estimates.cost_per_million_tokens:.2f}"
        rows.append(("cost per million tokens (estimate)", cost))
    return rows

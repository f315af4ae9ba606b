"""What a study's rows say: in each setting (machine, model shape, batch) a winner, and by how much it wins."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl

from engine.plan.plan import Plan, plan_from_dict
from experiments.statistics.comparison import Comparison, Quantity, compare, judge
from experiments.statistics.ranking import in_words, rank_plans
from experiments.study.grid import Objective, Study, plan_name
from experiments.study.notes import left_out, no_winner, notes, plans

SETTING = ("hardware", "model_shape", "batch")
RUNNERS_UP = 5
REQUEST_COLUMN: dict[Objective, str] = {
    "tokens_per_second": "request_ns",
    "p99": "request_p99_ns",
    "bytes": "request_bytes",
}
QUANTITY: dict[Objective, Quantity] = {
    "tokens_per_second": "tokens/s",
    "p99": "p99 time per token",
    "bytes": "bytes loaded",
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One plan in one setting, over all traces. `score` is what the objective asks for: the larger, the better."""

    plan: str
    toml: str
    needs_future: bool
    score: float
    value: float
    unit: str
    device_bytes: int | None
    share_of_bound: float | None
    costs: np.ndarray | None
    """What each request cost, over all traces in order; None where that is unknown."""
    short: str
    """The plan without its weights."""
    about: tuple[str, str, str, str]
    """Eviction, prefetch, capacity, weights: as text that is equal where they are."""


def conclude(study: Study, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """A summary of each setting, in the order of the study's file. `rows` are of the traces' full length."""
    found = []
    for (_, *setting), part in rows.group_by("hardware_digest", *SETTING[1:], maintain_order=True):
        setting = [part["hardware"][0], *setting]
        found.append(dict(zip(SETTING, setting, strict=True)) | _setting(study, part))
    return found


def _setting(study: Study, rows: pl.DataFrame) -> dict[str, Any]:
    everyone = contestants(study, rows)
    real = [one for one in everyone if not one.needs_future]
    memory = memory_of(study, rows["hardware"][0])
    fitting = [one for one in real if fits(one.device_bytes, study.max_device_bytes, memory)]
    room = min((size for size in (study.max_device_bytes, memory) if size is not None), default=None)
    unfit = left_out([one.device_bytes for one in real if one not in fitting], room)
    summary: dict[str, Any] = {"room_bytes": room, "contestants": len(fitting), "too_large": len(real) - len(fitting)}
    if not fitting:
        return summary | {
            **dict.fromkeys(("winner", "plan_toml", "value", "unit", "device_bytes", "share_of_bound")),
            "statement": no_winner(real, room),
            "comparisons": [],
            "ranking": [],
            "notes": unfit,
        }
    winner = best(fitting)
    comparisons = against(study, winner, fitting)
    return summary | {
        "winner": winner.plan,
        "plan_toml": winner.toml,
        "value": winner.value,
        "unit": winner.unit,
        "device_bytes": winner.device_bytes,
        "share_of_bound": winner.share_of_bound,
        "statement": statement(winner, len(fitting), searched=study.search is not None),
        "comparisons": [msgspec.to_builtins(found) for found in comparisons],
        # Without the winner the order of the others would mislead.
        "ranking": [] if winner.costs is None else ranking(study, fitting),
        "notes": [*unfit, *notes(study, fitting, len(comparisons))],
    }


def contestants(study: Study, rows: pl.DataFrame) -> list[Contestant]:
    """The plans of one setting that were replayed on every trace, in the order of the file."""
    found = []
    # The same requests in the same order for every plan: traces come in the order of the file.
    for part in rows.partition_by("plan_toml", maintain_order=True):
        if part["error"].null_count() == len(part) == len(study.traces):
            one = _contestant(study.objective, part)
            if one is not None:
                found.append(one)
    return found


def _contestant(objective: Objective, part: pl.DataFrame) -> Contestant | None:
    numbers = {name: part[name].to_numpy() for name in part.columns if part[name].dtype.is_numeric()}
    tokens = int(numbers["decode_tokens"].sum())
    bound = None
    if objective == "tokens_per_second":
        if part["tokens_per_second"].null_count() or not tokens:
            return None
        value = _overall(numbers, "tokens_per_second")
        score, unit = value, "tokens/s"
        if not part["bound_tokens_per_second"].null_count():
            bound = value / _overall(numbers, "bound_tokens_per_second")
    elif objective == "p99":
        if part["tpot_p99_ms"].null_count():
            return None
        value = float(numbers["tpot_p99_ms"].max())
        score, unit = -value, "ms per token at the 99th percentile"
    elif not part["decode_bytes_loaded"].null_count():
        value = float(numbers["decode_bytes_loaded"].sum() / max(tokens, 1))
        score, unit = -value, "bytes loaded per decode token"
    else:
        value = float((numbers["misses"].sum() + numbers["prefetches"].sum()) / max(tokens, 1))
        score, unit = -value, "experts loaded per decode token, prefill included"
    column = part[REQUEST_COLUMN[objective]]
    costs = None if column.null_count() else np.concatenate([cell.to_numpy() for cell in column])
    device = None if part["device_bytes"].null_count() else int(numbers["device_bytes"].max())
    first = part.row(0, named=True)
    plan = plan_from_dict(tomllib.loads(first["plan_toml"]))
    return Contestant(
        plan=first["plan"],
        toml=first["plan_toml"],
        needs_future=first["needs_future"],
        score=score,
        value=value,
        unit=unit,
        device_bytes=device,
        share_of_bound=bound,
        costs=None if costs is None or len(costs) == 0 else costs,
        short=plan_name(plan, stored=False),
        about=_about(plan),
    )


def _overall(numbers: dict[str, np.ndarray], speed: str) -> float:
    """Tokens per second over several traces."""
    tokens = numbers["decode_tokens"]
    return float(tokens.sum() / (tokens / numbers[speed]).sum())


def _about(plan: Plan) -> tuple[str, str, str, str]:
    tables = plan.to_dict()
    eviction, prefetch, weights = (repr(tables.get(name)) for name in ("eviction", "prefetch", "weights"))
    return eviction, prefetch, plan.cache.capacity, weights + plan.compute.cpu_experts


def memory_of(study: Study, hardware: str | None) -> int | None:
    """The device's memory; None without a machine."""
    return next((m.device.memory_bytes for m in study.machines if m is not None and m.name == hardware), None)


def fits(device_bytes: int | None, limit: int | None, memory: int | None) -> bool:
    """Whether a plan of that size fits into the limit and the device; a limit wants the size known."""
    if device_bytes is None:
        return limit is None
    return all(most is None or device_bytes <= most for most in (limit, memory))


def fitting_rows(study: Study, rows: pl.DataFrame) -> list[bool]:
    """Of each row, whether its plan fits on every trace."""
    names = ("plan_toml", "hardware", "hardware_digest", "model_shape", "batch")
    keys = list(rows.select(names).iter_rows())
    largest: dict[tuple[Any, ...], int] = {}
    for key, size in zip(keys, rows["device_bytes"], strict=True):
        if size is not None:
            largest[key] = max(size, largest.get(key, 0))
    return [fits(largest.get(key), study.max_device_bytes, memory_of(study, key[1])) for key in keys]


def best(fitting: Sequence[Contestant]) -> Contestant:
    """The best by the objective; of equals the smaller, then the first."""
    return min(fitting, key=lambda one: (-one.score, one.device_bytes or 0))


def against(study: Study, winner: Contestant, fitting: Sequence[Contestant]) -> list[Comparison]:
    """The winner against those that tell most, all as one family: the baseline, the plans that differ from the winner
    in eviction or in prefetching alone, and the runners-up."""
    if winner.costs is None:
        return []
    eviction, prefetch, capacity, weights = winner.about
    named = [one for one in fitting if study.baseline is None or f"'policy': '{study.baseline}'" in one.about[0]]
    alike = [one for one in named if one.about[2:] == (capacity, weights)]
    rivals = (alike or named)[:1]
    rivals += [one for one in fitting if one.about[1:] == (prefetch, capacity, weights)]
    rivals += [one for one in fitting if (one.about[0], *one.about[2:]) == (eviction, capacity, weights)]
    rivals += sorted(fitting, key=lambda one: -one.score)[: RUNNERS_UP + 1]
    chosen = {one.toml: one for one in rivals if one is not winner and one.costs is not None}
    options = study.statistics
    one_format = len({one.about[3] for one in fitting}) == 1
    family = [
        compare(
            (winner.short if one_format else winner.plan, winner.costs),
            (one.short if one_format else one.plan, one.costs),
            QUANTITY[study.objective],
            level=options.level,
            resamples=options.resamples,
            seed=options.seed,
            family=len(chosen),
        )
        for one in chosen.values()
        if one.costs is not None
    ]
    return judge(family, level=options.level)


def ranking(study: Study, fitting: Sequence[Contestant]) -> list[str]:
    """The best plans in order, those that cannot be told apart level with each other, a line each; [] without requests.

    They were chosen on the requests that rank them: like the winner, they look a little better than they are.
    """
    leading = [one for one in sorted(fitting, key=lambda one: -one.score)[: RUNNERS_UP + 1] if one.costs is not None]
    if len(leading) < 2:
        return []
    one_format = len({one.about[3] for one in fitting}) == 1
    costs = {one.short if one_format else one.plan: one.costs for one in leading if one.costs is not None}
    options = study.statistics
    places, _ = rank_plans(
        costs,
        QUANTITY[study.objective],
        level=options.level,
        resamples=options.resamples,
        seed=options.seed,
    )
    return in_words(places)


def statement(winner: Contestant, count: int, *, searched: bool = False) -> str:
    """Who won."""
    value = f"{winner.value:.3f}" if winner.value < 1000 else f"{winner.value:,.0f}"
    which = f"{plans(count)} at full length" if searched else plans(count)
    words = f"best of {which}: {winner.plan}, with {value} {winner.unit}"
    if winner.share_of_bound is not None:
        words += f", {100 * winner.share_of_bound:.0f} % of what clairvoyant decisions allow with that cache"
    return words

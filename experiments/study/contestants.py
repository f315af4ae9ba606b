"""Contestants: the plans of one setting that were replayed on every trace, and which of them fit into the device."""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl

from engine.plan.plan import Plan, plan_from_dict
from engine.plan.tables import ComputePlan, WeightsPlan
from experiments.quality.measurement import Estimate
from experiments.statistics.comparison import Quantity, rate_intervals
from experiments.study.grid import plan_name
from experiments.study.study_file import Objective, Study
from tracekit.errors import StudyError

REQUEST_COLUMNS: dict[Objective, tuple[tuple[str, Quantity], ...]] = {
    "tokens_per_second": (("request_ns", "tokens/s"),),
    "p99": (("request_p99_ns", "p99 time per token"),),
    "bytes": (("request_bytes", "bytes loaded"), ("request_loads", "experts loaded")),
    "hit_ratio": (("request_misses", "hit ratio"),),
}
"""What a request costs, by objective; the second where sizes, and so the first, are unknown."""
Once = Mapping[str, Collection[int]]
"""Requests of a trace, by its path, that another trace has as well: they are counted there."""
NOT_TWICE: Once = {}


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One plan in one setting, over all traces. `score` is what the objective asks for: the larger, the better."""

    name: str
    short: str
    """The plan's name without its weights."""
    plan: Plan
    toml: str
    traces: tuple[str, ...]
    """Digests of the traces that it was replayed on."""
    needs_future: bool
    score: float
    value: float
    unit: str
    device_bytes: int | None
    share_of_bound: float | None
    loss: Estimate | None
    """What it costs in quality, where that was measured."""
    quantity: Quantity
    costs: np.ndarray | None
    """What each request cost, over all traces in order; None where that is unknown."""
    tokens: np.ndarray | None
    """Decode tokens of each request, where tokens per second are asked for."""
    lookups: np.ndarray | None
    """Where misses are compared, of how many lookups they are."""

    @property
    def policy(self) -> str:
        """Its eviction policy's name."""
        return self.plan.eviction.policy

    def ends(self, level: float) -> tuple[float, float] | None:
        """Between which tokens per second it is at this level; None for another objective, or where nothing tells."""
        if self.tokens is None or self.costs is None or self.quantity != "tokens/s":
            return None
        found = rate_intervals(self.tokens, self.costs[None].astype(np.float64), level=level)
        return None if found is None else (float(found[0, 0]), float(found[0, 1]))

    @property
    def rank(self) -> tuple[float, int]:
        """The best by the objective comes first; of equals the smaller."""
        return -self.score, self.device_bytes or 0

    @property
    def kind(self) -> bytes:
        """Equal for plans with as large a cache, whose experts are stored and computed alike."""
        plan = self.plan
        return msgspec.json.encode((plan.cache, plan.weights, plan.compute), order="deterministic")

    @property
    def stored(self) -> tuple[WeightsPlan, ComputePlan]:
        """How its experts are stored, and where they are computed."""
        return self.plan.weights, self.plan.compute


@dataclass(frozen=True, slots=True)
class Contest:
    """Everyone who was replayed in one setting, in the order of the file.

    `real` need no foresight; of these `placed` fit into `room` bytes of the device (None: no limit is known); and of
    these `fitting` lose no more of quality than the study allows.
    """

    everyone: list[Contestant]
    real: list[Contestant]
    placed: list[Contestant]
    fitting: list[Contestant]
    room: int | None

    @classmethod
    def of(cls, study: Study, rows: pl.DataFrame, once: Once = NOT_TWICE) -> "Contest":
        """`rows` are of one setting."""
        everyone = contestants(study, rows, once)
        real = [one for one in everyone if not one.needs_future]
        memory = memories(study).get(rows["hardware"][0])
        limits = [size for size in (study.max_device_bytes, memory) if size is not None]
        placed = [one for one in real if _fits(one.device_bytes, limits, known=study.max_device_bytes is not None)]
        most = study.quality_loss
        fitting = [one for one in placed if most is None or (one.loss is not None and one.loss.value <= most)]
        return cls(everyone, real, placed, fitting, min(limits, default=None))


def contestants(study: Study, rows: pl.DataFrame, once: Once) -> list[Contestant]:
    """The plans of one setting that were replayed on every trace, in the order of the file."""
    digests = dict(rows.select("trace", "trace_digest").iter_rows())
    traces = tuple(digests[path] for path in study.traces if path in digests)
    found = []
    # The same requests in the same order for every plan: traces come in the order of the file.
    for part in rows.partition_by("plan_toml", maintain_order=True):
        if tuple(part["trace_digest"]) == traces and part["error"].null_count() == len(part):
            found.append(_contestant(study.objective, part, once))
    return [one for one in found if one is not None]


def _contestant(objective: Objective, part: pl.DataFrame, once: Once) -> Contestant | None:
    numbers = {name: part[name].to_numpy() for name in part.columns if part[name].dtype.is_numeric()}
    tokens = int(numbers["decode_tokens"].sum())
    bound = None
    if objective == "tokens_per_second":
        if part["request_ns"].null_count() or not tokens:
            return None
        # Of a plan that does not fit there is no such speed; what it would be ranks it among those that do not.
        value = tokens / (sum(cell.sum() for cell in part["request_ns"]) / 1e9)
        score, unit = value, "tokens/s"
        of_plan = not part["bound_tokens_per_second"].null_count() and part["routing_label"].null_count() == len(part)
        if of_plan:  # bounds are of unaltered routing, and none of plans that alter it
            bound = value / overall(part, "bound_tokens_per_second")
    elif objective == "p99":
        if part["request_p99_ns"].null_count() or not tokens:
            return None
        value = float(numbers["tpot_p99_ms"].max())
        if part["tpot_p99_ms"].null_count():
            value = max(cell.to_numpy().max(initial=0) for cell in part["request_p99_ns"]) / 1e6
        score, unit = -value, "ms per token at the 99th percentile"
    elif objective == "hit_ratio":
        phase = "decode_" if numbers["decode_lookups"].sum() else ""
        value = float(numbers[f"{phase}hits"].sum() / max(numbers[f"{phase}lookups"].sum(), 1))
        score, unit = value, f"of {'decode ' if phase else ''}lookups hit"
    elif not part["decode_bytes_loaded"].null_count():
        value = float(numbers["decode_bytes_loaded"].sum() / max(tokens, 1))
        score, unit = -value, "bytes loaded per decode token"
    else:
        loads, served = (sum(cell.sum() for cell in part[name]) for name in ("request_loads", "request_tokens"))
        value = float(loads / max(served, 1))
        score, unit = -value, "experts loaded per decode token"
    columns = REQUEST_COLUMNS[objective]
    column, quantity = next((one for one in columns if not part[one[0]].null_count()), columns[0])
    plan = plan_of(part["plan_toml"][0])
    return Contestant(
        name=part["plan"][0],
        short=plan_name(plan, stored=False),
        plan=plan,
        toml=part["plan_toml"][0],
        traces=tuple(part["trace_digest"]),
        needs_future=part["needs_future"][0],
        score=score,
        value=value,
        unit=unit,
        device_bytes=None if part["device_bytes"].null_count() else int(numbers["device_bytes"].max()),
        share_of_bound=bound,
        loss=loss_of_row(part),
        quantity=quantity,
        costs=_by_request(part, column, once),
        tokens=_by_request(part, "request_tokens", once) if quantity == "tokens/s" else None,
        lookups=_by_request(part, "request_lookups", once) if quantity == "hit ratio" else None,
    )


def loss_of_row(part: pl.DataFrame) -> Estimate | None:
    """What the plan of these rows costs in quality, where that was measured."""
    value, low, high = part.select("quality_loss", "quality_loss_low", "quality_loss_high").row(0)
    return None if value is None else Estimate(value, low, high)


def _by_request(part: pl.DataFrame, column: str, once: Once) -> np.ndarray | None:
    """One plan's costs of all requests that count, traces one after the other; None where they are unknown, or none."""
    if part[column].null_count():
        return None
    found = []
    for trace, requests, costs in part.select("trace", "request", column).iter_rows():
        twice = once.get(trace, ())
        found.append(np.array(costs)[~np.isin(requests, list(twice))] if twice else np.array(costs))
    whole = np.concatenate(found)
    return whole if len(whole) else None


def overall(part: pl.DataFrame, speed: str) -> float:
    """Tokens per second of one plan over several traces; `speed` is the column that has them for each."""
    tokens = part["decode_tokens"].to_numpy()
    return float(tokens.sum() / (tokens / part[speed].to_numpy()).sum())


def plan_of(toml: str) -> Plan:
    """The plan of a row's `plan_toml`. Raises StudyError for what is no TOML, PlanError for what is no plan."""
    try:
        tables = tomllib.loads(toml)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError(f"a row's plan_toml is damaged: {str(error)[:200]}; run the study again") from None
    return plan_from_dict(tables)


def memories(study: Study) -> dict[str | None, int]:
    """The device's memory by the name of the machine, in bytes."""
    return {machine.name: machine.device.memory_bytes for machine in study.machines if machine is not None}


def _fits(device_bytes: int | None, limits: list[int], *, known: bool) -> bool:
    """Whether a plan of that size stays within all limits; `known`: the study's own limit wants its size known."""
    return not known if device_bytes is None else all(device_bytes <= most for most in limits)


def fitting_rows(study: Study, rows: pl.DataFrame) -> pl.Series:
    """Of each row, whether its plan fits on every trace, and loses no more of quality than is allowed: bool [rows]."""
    size = pl.col("device_bytes").max().over("plan_toml", "hardware", "hardware_digest", "model_shape", "batch")
    memory = pl.col("hardware").replace_strict(memories(study), default=None, return_dtype=pl.Int64)
    limit = pl.lit(study.max_device_bytes, pl.Int64)
    within = (size <= limit).fill_null(study.max_device_bytes is None) & (size <= memory).fill_null(value=True)
    if study.quality_loss is not None:
        within &= (pl.col("quality_loss") <= study.quality_loss).fill_null(value=False)
    return rows.select(fits=within)["fits"]

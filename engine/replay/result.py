"""The result of a replay, as data."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from policies.rerouting import Altered
from tracekit.html_table import html_table

if TYPE_CHECKING:
    import altair as alt
    import polars as pl


class HitsBy(msgspec.Struct, frozen=True, kw_only=True):
    """Hits by cause: kept by the cache, pinned, or loaded ahead by a prefetch."""

    cache: int
    pinned: int
    prefetch: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions counted. `hit_ratio` contains prefetched hits; `hits_by` tells them apart.

    Misses are `loads`, `bypasses` and what was `hosted`: computed by the host, and of these some `admitted`, which are
    copied into the cache meanwhile. `bytes_loaded` is all copies together; None when an expert's bytes are unknown.
    """

    tokens: int
    lookups: int
    hits: int
    misses: int
    hit_ratio: float
    hits_by: HitsBy
    loads: int
    bypasses: int
    hosted: int
    admitted: int
    prefetches: int
    bytes_loaded: int | None


class PhaseCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by phase."""

    prefill: Counts
    decode: Counts


class Tpot(msgspec.Struct, frozen=True, kw_only=True):
    """Time per output token in milliseconds: percentiles over decode steps."""

    p50: float
    p95: float
    p99: float


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Time on a modelled machine.

    `tokens_per_second` is decode tokens over decode time; `ttft_ms` the mean time of a prefill step. A plan that does
    not fit into the device's memory (`fits`) has neither, nor `tpot_ms`. `largest_part` of the time is "compute",
    "overhead" (what the engine takes whatever it computes) or "stall". `compute_s`,
    `overhead_s` and `stall_s` (by cause) are of decode and prefill together and sum to `total_s`.
    """

    hardware: str
    engine: str
    model_shape: str | None
    scale: float
    fits: bool
    total_s: float
    tokens_per_second: float | None
    tpot_ms: Tpot | None
    ttft_ms: float | None
    largest_part: str
    compute_s: float
    overhead_s: float
    stall_s: dict[str, float]
    link_utilisation: float
    prefetches: dict[str, int]


class SpeedBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Decode tokens per second that no plan reaches: see Bounds. None: nothing hinders."""

    link_tokens_per_second: float | None = None
    compute_tokens_per_second: float | None = None
    best_tokens_per_second: float | None = None


class Bounds(SpeedBounds, frozen=True, kw_only=True):
    """What no plan can beat with this capacity and these weights on this machine, in decode tokens per second.

    Under `engine`, misses on the host or not as the plan says: `link`, the fewest experts that decode steps must
    copy, prefill being free, and nothing else; `compute`, all that must be computed, with no copies at all; `best`,
    both together (engine.replay.speed_bounds), no higher than either. `hardware` holds the same for any engine: no time
    of software, weights read as they are stored, and the CPU helps if the machine's profile has it.

    `copies` is the fewest experts that are copied at all, on demand or ahead of it: those that clairvoyant decisions
    miss (Belady with bypassing); what the host computes instead counts as one. `hit_ratio` is what follows for hits;
    None for plans that prefetch, and `no_hit_ratio` says why. Both begin with an empty cache, or beside a plan that
    pins or is warm with whatever is best. Of experts of unequal size in one cache all are taken for as small as the
    smallest.

    `routing` is "unaltered" beside a plan that alters routing: they are of the gates' own choices then, and no bounds
    of such a plan, which may beat them.
    """

    copies: int
    hit_ratio: float | None
    no_hit_ratio: str | None = None
    routing: str | None = None
    engine: str | None = None
    hardware: SpeedBounds | None = None


class AlteredRouting(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan's routing policy did to the gates' choices.

    `label` says how it is known: "first-order estimate" where the gates' numbers are as recorded, "closed loop" where
    each gate saw what the altered layers before it made. Shares are of the gates' own choices, and of their weights.
    """

    policy: str
    label: str
    choices: int
    altered: int
    """Choices of another expert, or dropped."""
    dropped: int
    altered_share: float
    dropped_share: float
    altered_weight: float
    """The share of the gates' weights that the altered choices had."""
    dropped_weight: float


def altered_routing(policy: str, label: str, found: Altered) -> AlteredRouting:
    """The counts of a rewriting as a result says them."""
    choices, weight = max(found.choices, 1), found.weight or 1.0
    altered = found.replaced + found.dropped
    return AlteredRouting(
        policy=policy,
        label=label,
        choices=found.choices,
        altered=altered,
        dropped=found.dropped,
        altered_share=altered / choices,
        dropped_share=found.dropped / choices,
        altered_weight=(found.replaced_weight + found.dropped_weight) / weight,
        dropped_weight=found.dropped_weight / weight,
    )


class Regret(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps the plan's decode steps (all steps, if none is) from the speed of computing alone (`regret`).

    Nanoseconds over these `steps`, of the model's layers. The parts add up to `total_ns` exactly; each may be negative.
    """

    steps: int
    total_ns: int
    overhead_ns: int
    """Fixed times of layers, steps, gate readback and asking."""
    compulsory_ns: int
    """Every expert is copied once."""
    capacity_ns: int
    """The cache is smaller than the model; decisions are clairvoyant."""
    policy_ns: int
    """The plan's eviction policy is not clairvoyant."""
    prefetch_ns: int
    """What prefetching would win if its copies cost nothing and displaced nothing: negative."""
    pollution_ns: int
    """Demand copies that are needed only because prefetching displaced the expert, at the time of a copy alone."""
    late_prefetch_ns: int
    """Waiting for prefetches that were under way or still queued."""
    prefetch_copies_ns: int
    """What else prefetches' copies cost: the link they keep from demand, the host's asking for them. It does not say
    what a faster link would gain: sensitivities do."""
    lane_ns: int
    """What it wins that misses are served otherwise than by copying and keeping them, if they are: negative."""


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """Decode speed if one `part` of the machine were so many `times` better (engine.replay.sensitivities).

    `gain` is relative to the machine as it is: 0.5 is half as fast again.
    """

    part: str
    times: float
    tokens_per_second: float
    gain: float


class Estimates(msgspec.Struct, frozen=True, kw_only=True):
    """Estimates, not measurements (`estimates`): memory, energy and cost; None where the profile does not say.

    `inputs` names what energy and cost were made from. Per token means per generated (decode) token, prefill included.
    """

    device_bytes: int
    device_parts: dict[str, int]
    """`device_bytes` by what they are for (engine.replay.memory.DeviceMemory)."""
    host_bytes: int
    joules_per_token: float | None
    cost_per_million_tokens: float | None
    currency: str | None
    inputs: list[str]


class Switching(msgspec.Struct, frozen=True, kw_only=True):
    """Switches between domains (`switching`): how often, and the copies of what was not there, all of them among
    `prefetches` and their bytes in `bytes_loaded`; None when the bytes of an expert are unknown."""

    switches: int
    copies: int
    bytes_loaded: int | None


class TierCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one tier of experts in two formats did (`precision`), over the whole trace.

    `lookups` are those that its copies served; `bytes_loaded` is None when the bytes of an expert are unknown.
    """

    lookups: int
    hits: int
    prefetches: int
    bytes_loaded: int | None


class Result(Counts, frozen=True, kw_only=True):
    """Everything a replay found: the counts of the whole trace, by phase, time, bounds, and where it all came from."""

    phases: PhaseCounts
    routing: AlteredRouting | None = None
    """What a plan's routing policy altered; None where the gates' own choices were replayed."""
    time: Time | None
    bounds: Bounds | None
    regret: Regret | None
    sensitivities: list[Sensitivity] | None
    estimates: Estimates | None
    switching: Switching | None = None
    """None for a plan that knows no domains."""
    warnings: list[str]
    provenance: dict[str, Any]
    precision: dict[str, TierCounts] | None = None
    """By tier, "high" and "low", where the plan keeps experts in two formats."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def to_polars(self) -> "pl.DataFrame":
        """One row of figures: counts, and with a machine its times, by the names of `to_dict` joined with dots."""
        import polars as pl

        row: dict[str, object] = {"plan": self.provenance["plan"]["cache"]["capacity"]}
        return pl.DataFrame([row | dict(self._figures())])

    def plot(self) -> "alt.Chart":
        """Where the time goes, as bars; hits and misses without a machine. Needs altair (the extra `report`)."""
        import altair as alt

        if self.time is None:
            parts: dict[str, float] = {"hits": self.hits, "misses": self.misses}
        else:
            parts = {"compute": self.time.compute_s, "overhead": self.time.overhead_s}
            parts |= {f"stall: {cause}": seconds for cause, seconds in self.time.stall_s.items() if seconds}
        rows = [{"part": part, "value": value} for part, value in parts.items()]
        title = "lookups" if self.time is None else "seconds"
        base: alt.Chart = alt.Chart.from_dict({"data": {"values": rows}, "mark": "bar", "encoding": {}})
        return base.encode(alt.X("value:Q", title=title), alt.Y("part:N", sort=None, title=None))

    def _figures(self) -> Iterator[tuple[str, float | int | str | None]]:
        """Every number and word of the result but provenance, under its path."""
        left = [("", {key: value for key, value in self.to_dict().items() if key != "provenance"})]
        while left:
            path, table = left.pop(0)
            for key, value in table.items():
                if isinstance(value, dict):
                    left.append((f"{path}{key}.", value))
                elif not isinstance(value, list):
                    yield f"{path}{key}", value

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self._figures() if value is not None and name in SHOWN}
        return html_table("Replay", [*shown.items(), *(("warning", text) for text in self.warnings)])


SHOWN = (
    *("lookups", "hit_ratio", "misses", "prefetches", "bytes_loaded", "phases.decode.hit_ratio"),
    *("routing.policy", "routing.label", "routing.altered_share", "routing.dropped_weight"),
    *("time.hardware", "time.engine", "time.tokens_per_second", "time.ttft_ms", "time.tpot_ms.p50", "time.tpot_ms.p99"),
    *("bounds.hit_ratio", "bounds.copies", "bounds.best_tokens_per_second", "bounds.hardware.best_tokens_per_second"),
)
"""What a notebook shows of a result."""

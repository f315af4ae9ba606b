"""The best plans of a setting as the rows of a table, and a verdict in one sentence, for terminal and report alike."""

from collections.abc import Sequence

import msgspec

from engine.plan.plan import Plan
from experiments.quality.measurement import Estimate
from experiments.report.labels import labels, shared
from experiments.statistics.comparison import Comparison, Outcome
from experiments.study.contestants import Contestant
from experiments.study.grid import (
    admission_name,
    eviction_name,
    misses_name,
    placing_name,
    prefetch_name,
    routing_name,
    tiers_name,
)

MOST = 5


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """One of the best plans. `name` says what tells it from the others of its table.

    `against`: how much better than the winner it is, as a share (negative: worse), between `low` and `high`; None for
    the winner itself, and where they were not compared. `outcome` is of the winner against it. `loss` of quality is
    known where it was measured.
    """

    name: str
    plan_toml: str
    value: float
    device_bytes: int | None
    share_of_bound: float | None
    ends: tuple[float, float] | None = None
    """Between which tokens per second `value` is."""
    loss: Estimate | None = None
    against: float | None = None
    low: float | None = None
    high: float | None = None
    outcome: Outcome | None = None

    @property
    def words(self) -> str:
        """How it stands against the winner."""
        if self.against is None or self.outcome is None:
            return ""
        if self.outcome == "identical":
            return "the same"
        shown = _percent(self.against)
        if self.low is not None and self.high is not None:
            shown += f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        if self.outcome == "too few":
            return f"{shown}, too few requests to tell"
        return shown if self.outcome in ("better", "worse") else f"level: {shown}"


def plan_parts(plan: Plan) -> dict[str, str]:
    """What a plan's name is made of, part by part, as `experiments.report.labels` puts them together."""
    weights = plan.weights.experts or ""
    if plan.weights.attention is not None:
        weights = f"{weights} (attention {plan.weights.attention})".strip()
    if tiers := tiers_name(plan):
        weights = f"{weights}, {tiers}".removeprefix(", ")
    return {
        "eviction": eviction_name(plan),
        "capacity": plan.cache.capacity + placing_name(plan),
        "prefetch": prefetch_name(plan),
        "routing": routing_name(plan),
        "weights": weights,
        "kernels": "fused" if plan.compute.experts == "fused" else "",
        "lane": ", ".join(filter(None, (admission_name(plan), misses_name(plan)))),
    }


def leaders(fitting: Sequence[Contestant], comparisons: Sequence[Comparison], level: float) -> tuple[list[Leader], str]:
    """The best plans, the winner first, and what all of them share. `comparisons` are the winner's."""
    best = sorted(fitting, key=lambda one: one.rank)[:MOST]
    parts = [plan_parts(one.plan) for one in best]
    found = []
    for name, one in zip(labels(parts), best, strict=True):
        judged = next((other for other in comparisons if other.second in (one.name, one.short)), None)
        leader = Leader(
            name=name,
            plan_toml=one.toml,
            value=one.value,
            device_bytes=one.device_bytes,
            share_of_bound=one.share_of_bound,
            ends=one.ends(level),
            loss=one.loss,
        )
        if judged is not None and one is not best[0]:
            ends = (judged.low, judged.high)
            low, high = (None if end is None else _turned(judged, end) for end in reversed(ends))
            leader = msgspec.structs.replace(
                leader, against=_turned(judged, judged.effect), low=low, high=high, outcome=judged.outcome
            )
        found.append(leader)
    return found, shared(parts)


def valued(value: float, ends: tuple[float, float] | None) -> str:
    """A figure with its interval, where there is one: `3.430 [3.101, 3.812]`."""

    def shown(number: float) -> str:
        return f"{number:.3f}" if number < 1000 else f"{number:,.0f}"

    return shown(value) + (f" [{shown(ends[0])}, {shown(ends[1])}]" if ends else "")


def verdict(comparisons: Sequence[Comparison]) -> str:
    """How sure it is that the winner is the best: one sentence; nothing where it was compared with none."""
    if not comparisons:
        return ""
    compared = f"the {_plans(len(comparisons))} it was compared with"
    if any(found.outcome == "too few" for found in comparisons):
        return f"{comparisons[0].requests} requests are too few to tell it from {compared}"
    beaten = sum(found.outcome == "better" for found in comparisons)
    if beaten == len(comparisons):
        return f"it beats {compared}"
    level = len(comparisons) - beaten
    if not beaten:
        return f"no difference is shown to {compared}"
    return f"it beats {beaten} of {compared}; no difference is shown to the other{'' if level == 1 else f' {level}'}"


def _plans(count: int) -> str:
    return "one plan" if count == 1 else f"{count} plans"


def _turned(found: Comparison, effect: float) -> float:
    """The same from the other plan's side."""
    return 1 / (1 + effect) - 1 if found.quantity == "tokens/s" else -effect


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"

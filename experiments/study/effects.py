"""What every policy gains on the baseline at each cache size, and all that is said of plans, as one family.

A study asks many things of the same requests: each policy against the baseline at each capacity, the winner against its
rivals, the best against each other. All pairs are judged together (`Family`), so text, ranking and table cannot
disagree.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import polars as pl

from experiments.statistics.comparison import Comparison, compare, holm, judged
from experiments.study.conditions import Conditions
from experiments.study.contestants import Contest, Contestant
from experiments.study.grid import computed_name, eviction_name, placing_name, prefetch_name, routing_name, tiers_name
from experiments.study.schema import EFFECTS
from experiments.study.study_file import Statistics, Study

SAID = {
    "better": "better",
    "worse": "worse",
    "level": "level",
    "none": "not shown",
    "identical": "the same",
    "too few": "too few requests",
    "bound": "knows the future",
}
"""Outcomes as a table says them."""


class Pair(NamedTuple):
    """Two plans that are compared."""

    first: Contestant
    second: Contestant


class Family:
    """Comparisons that are judged together, whoever comes first in each."""

    def __init__(self, pairs: Sequence[Pair], statistics: Statistics, names: dict[str, str]) -> None:
        asked = {frozenset((one.first.toml, one.second.toml)): one for one in pairs}
        self._options, self._names, self._size = msgspec.structs.asdict(statistics), names, len(asked)
        found = [self._compared(*one) for one in asked.values()]
        corrected = dict(zip(asked, holm([one.p for one in found]), strict=True))
        self._corrected = corrected
        self._judged = {
            (first.toml, second.toml): self._said(one, corrected[both])
            for (both, (first, second)), one in zip(asked.items(), found, strict=True)
        }

    def __len__(self) -> int:
        return self._size

    def of(self, first: Contestant, second: Contestant) -> Comparison:
        """One of the pairs, judged."""
        known = self._judged.get((first.toml, second.toml))
        if known is not None:
            return known
        return self._said(self._compared(first, second), self._corrected[frozenset((first.toml, second.toml))])

    def beside(self, first: Contestant, second: Contestant) -> Comparison:
        """A pair that is no part of the family: nothing is concluded from it."""
        return self._compared(first, second)

    def _said(self, found: Comparison, corrected: float) -> Comparison:
        return judged(found, corrected, family=self._size, **self._options)

    def _compared(self, first: Contestant, second: Contestant) -> Comparison:
        assert first.costs is not None and second.costs is not None
        return compare(
            (self._names[first.toml], first.costs),
            (self._names[second.toml], second.costs),
            first.quantity,
            lookups=first.lookups,
            family=self._size,
            **self._options,
        )


def against_baseline(study: Study, contest: Contest) -> list[Pair]:
    """At each capacity and in each format every plan with the first plan of the baseline's policy.

    Of plans that fit, or of all where none does; and of bounds, whatever their size.
    """
    able = contest.fitting or contest.real
    baselines: dict[bytes, Contestant] = {}
    for one in able:
        if one.policy == study.baseline and one.costs is not None:
            baselines.setdefault(one.kind, one)
    chosen = {one.toml for one in able}
    return [
        Pair(one, baselines[one.kind])
        for one in contest.everyone
        if one.costs is not None
        and (one.needs_future or one.toml in chosen)
        and one.kind in baselines
        and baselines[one.kind] is not one
    ]


def effect_rows(setting: Conditions, pairs: Sequence[Pair], family: Family) -> pl.DataFrame:
    """The table of effects of one setting (`EFFECTS`)."""
    return pl.DataFrame([_row(setting, pair, family) for pair in pairs], schema=EFFECTS)


def _row(setting: Conditions, pair: Pair, family: Family) -> dict[str, Any]:
    one, base = pair
    bound = one.needs_future
    found = (family.beside if bound else family.of)(one, base)
    return {
        **setting._asdict(),
        "capacity": one.plan.cache.capacity,
        "weights": one.plan.weights.experts,
        "policy": policy_name(one),
        "plan": one.name,
        "plan_toml": one.toml,
        "baseline": policy_name(base),
        "needs_future": bound,
        "unit": one.unit,
        "value": one.value,
        "baseline_value": base.value,
        **{name: getattr(found, name) for name in COMPARED},
        "corrected": None if bound else found.corrected,
        "outcome": "bound" if bound else found.outcome,
        "verdict": "knows the future: what is left to win" if bound else found.verdict,
    }


COMPARED = ("quantity", "effect", "low", "high", "requests", "effective", "wins", "p")


def policy_name(one: Contestant) -> str:
    """Eviction, placement and prefetching of a plan: what it does, whatever its cache."""
    prefetch = prefetch_name(one.plan)
    placed = eviction_name(one.plan) + placing_name(one.plan)
    routing = routing_name(one.plan)
    placed += f" + {prefetch}" if prefetch else ""
    tiers = tiers_name(one.plan)
    placed += (f", {routing}" if routing else "") + (f", {tiers}" if tiers else "")
    return placed + computed_name(one.plan)


MOST_ANSWERS, MOST_NAMED = 12, 3
"""Sentences, and policies named in one of them; the table has all."""


def answers(effects: pl.DataFrame) -> list[str]:
    """For each policy at which cache sizes it beats the baseline, and by how much; one sentence for those alike.

    Policies that differ from the baseline come first.
    """
    several = effects["weights"].n_unique() > 1
    real = effects.filter(~pl.col("needs_future"))
    alike: dict[str, list[str]] = {}
    for (policy, baseline), rows in real.group_by("policy", "baseline", maintain_order=True):
        places: dict[str, list[str]] = {}
        for row in rows.iter_rows(named=True):
            where = row["capacity"] + (f" {row['weights']}" if several and row["weights"] else "")
            shown = row["outcome"] in SHOWN
            places.setdefault(row["outcome"], []).append(where + (f" ({effect_text(row)})" if shown else ""))
        parts = [f"{SAID[outcome]} at {', '.join(places[outcome])}" for outcome in SAID if outcome in places]
        alike.setdefault(f"against {baseline}: {'; '.join(parts)}", []).append(str(policy))
    said = sorted(alike, key=lambda told: not any(SAID[outcome] in told for outcome in SHOWN))
    found = [f"{_named(alike[told])} {told}" for told in said[:MOST_ANSWERS]]
    more = sum(len(alike[told]) for told in said[MOST_ANSWERS:])
    return [*found, f"{more} other policies: see the table"] if more else found


SHOWN = ("better", "worse")


def _named(policies: Sequence[str]) -> str:
    """The first of them, and how many more: `lfu, arc, sieve and 4 others`."""
    if len(policies) > MOST_NAMED + 1:
        return f"{', '.join(policies[:MOST_NAMED])} and {len(policies) - MOST_NAMED} others"
    return " and ".join([", ".join(policies[:-1]), policies[-1]]) if len(policies) > 1 else policies[0]


def effect_text(row: dict[str, Any]) -> str:
    """An effect: `+3.1 %`, or `+1.2 points` of hit ratio."""
    return f"{100 * row['effect']:+.1f} {'points' if row['quantity'] == 'hit ratio' else '%'}"


def interval_text(row: dict[str, Any]) -> str:
    """Its interval: `[2.5, 3.7]`; `-` where requests are too few for one."""
    return "-" if row["low"] is None else f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"

"""What a study's rows say: in each setting a winner, and by how much it wins."""

from collections.abc import Sequence

import msgspec
import polars as pl

from experiments.statistics.comparison import Comparison, Quantity, compare, judge
from experiments.statistics.ranking import in_words, rank_plans
from experiments.study.conditions import Conditions
from experiments.study.contestants import Contest, Contestant
from experiments.study.grid import Objective, Study
from experiments.study.leaders import leaders, verdict
from experiments.study.notes import left_out, no_winner, notes, plans
from experiments.study.search import told, words
from experiments.study.study_json import SettingSummary

RUNNERS_UP = 5
QUANTITY: dict[Objective, Quantity] = {
    "tokens_per_second": "tokens/s",
    "p99": "p99 time per token",
    "bytes": "bytes loaded",
}


def conclude(study: Study, rows: pl.DataFrame, searched: pl.DataFrame) -> list[SettingSummary]:
    """A summary of each setting, in the order of the study's file.

    `rows` are of the traces' full length; `searched` is what a search did before (`SEARCH`).
    """
    found = []
    for (_, shape, batch), part in rows.group_by("hardware_digest", "model_shape", "batch", maintain_order=True):
        setting = Conditions(part["hardware"][0], shape, batch)
        found.append(_summary(study, setting, part, setting.rows_of(searched)))
    return found


def _summary(study: Study, setting: Conditions, rows: pl.DataFrame, searched: pl.DataFrame) -> SettingSummary:
    contest, rounds = Contest.of(study, rows), told(searched)
    real, fitting, room = contest.real, contest.fitting, contest.room
    said = left_out([one.device_bytes for one in real if one not in fitting], room)
    large = sum(found.too_large for found in rounds)
    of_search = left_out([0] * large, room) + ([note] if (note := words(rounds)) else [])
    summary = SettingSummary(
        **setting._asdict(),
        room_bytes=room,
        contestants=len(fitting),
        too_large=len(real) - len(fitting),
        statement=no_winner(real, room),
        notes=said + of_search,
        search=rounds,
    )
    if not fitting:
        return summary
    winner = min(fitting, key=lambda one: one.rank)
    comparisons = against(study, winner, fitting)
    best, alike = leaders(fitting, comparisons)
    return msgspec.structs.replace(
        summary,
        winner=winner.name,
        plan_toml=winner.toml,
        value=winner.value,
        unit=winner.unit,
        device_bytes=winner.device_bytes,
        share_of_bound=winner.share_of_bound,
        statement=statement(winner, len(fitting), searched=study.search is not None),
        best=best,
        alike=alike,
        verdict=verdict(comparisons),
        comparisons=comparisons,
        # Without the winner the order of the others would mislead.
        ranking=[] if winner.costs is None else ranking(study, fitting),
        notes=said + notes(study, fitting, len(comparisons)) + of_search,
    )


def against(study: Study, winner: Contestant, fitting: Sequence[Contestant]) -> list[Comparison]:
    """The winner against those that tell most, all as one family: the baseline, the plans that differ from the winner
    in eviction or in prefetching alone, and the runners-up."""
    if winner.costs is None:
        return []
    kept = [one for one in fitting if (one.plan.cache, one.stored) == (winner.plan.cache, winner.stored)]
    rivals = [one for one in [*kept, *fitting] if study.baseline in (None, one.policy)][:1]
    rivals += [one for one in kept if one.plan.prefetch == winner.plan.prefetch]
    rivals += [one for one in kept if one.plan.eviction == winner.plan.eviction]
    rivals += _leading(fitting)
    chosen = {one.toml: one for one in rivals if one is not winner}
    options, named = msgspec.structs.asdict(study.statistics), _names(fitting)
    costs = {toml: one.costs for toml, one in chosen.items() if one.costs is not None}
    family = [
        compare(
            (named[winner.toml], winner.costs),
            (named[toml], theirs),
            QUANTITY[study.objective],
            **options,
            family=len(costs),
        )
        for toml, theirs in costs.items()
    ]
    return judge(family, level=study.statistics.level)


def ranking(study: Study, fitting: Sequence[Contestant]) -> list[str]:
    """The best plans in order, those that cannot be told apart level with each other, a line each; [] without requests.

    They were chosen on the requests that rank them: like the winner, they look a little better than they are.
    """
    named = _names(fitting)
    costs = {named[one.toml]: one.costs for one in _leading(fitting) if one.costs is not None}
    if len(costs) < 2:
        return []
    places, _ = rank_plans(costs, QUANTITY[study.objective], **msgspec.structs.asdict(study.statistics))
    return in_words(places)


def _leading(fitting: Sequence[Contestant]) -> list[Contestant]:
    return sorted(fitting, key=lambda one: -one.score)[: RUNNERS_UP + 1]


def _names(fitting: Sequence[Contestant]) -> dict[str, str]:
    """What to call plans, by their files: without their weights where these are the same for all."""
    alike = len({one.stored for one in fitting}) == 1
    return {one.toml: one.short if alike else one.name for one in fitting}


def statement(winner: Contestant, count: int, *, searched: bool = False) -> str:
    """Who won."""
    value = f"{winner.value:.3f}" if winner.value < 1000 else f"{winner.value:,.0f}"
    which = f"{plans(count)} at full length" if searched else plans(count)
    words = f"best of {which}: {winner.name}, with {value} {winner.unit}"
    if winner.share_of_bound is not None:
        words += f", {100 * winner.share_of_bound:.0f} % of what clairvoyant decisions allow with that cache"
    return words

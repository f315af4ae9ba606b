"""What a study's rows say: in each setting a winner, and by how much it wins."""

import itertools
from collections.abc import Sequence

import msgspec
import polars as pl

from experiments.statistics.ranking import in_words, places
from experiments.statistics.speeds import MODELLED
from experiments.study.conditions import Conditions
from experiments.study.contestants import NOT_TWICE, Contest, Contestant, Once
from experiments.study.effects import Family, Pair, against_baseline, answers, effect_rows
from experiments.study.leaders import leaders, valued, verdict
from experiments.study.notes import left_out, no_winner, notes, of_quality, plans, share, sized, too_lossy
from experiments.study.schema import EFFECTS
from experiments.study.search import told, words
from experiments.study.study_file import WITHOUT_TIME, Study
from experiments.study.study_json import SettingSummary

RUNNERS_UP = 5


def conclude(
    study: Study, rows: pl.DataFrame, searched: pl.DataFrame, once: Once = NOT_TWICE
) -> tuple[list[SettingSummary], pl.DataFrame]:
    """A summary of each setting, in the order of the study's file, and each plan against the baseline (`EFFECTS`).

    `rows` are of the traces' full length; `searched` is what a search did before (`SEARCH`); `once` are requests that
    another trace has as well.
    """
    found, effects = [], [pl.DataFrame(schema=EFFECTS)]
    for (_, shape, batch), part in rows.group_by("hardware_digest", "model_shape", "batch", maintain_order=True):
        setting = Conditions(part["hardware"][0], shape, batch, part["engine"][0])
        contest = Contest.of(study, part, once)
        summary, table = _concluded(study, setting, contest, sized(part), setting.rows_of(searched))
        found.append(summary)
        effects.append(table)
    return found, pl.concat(effects).rechunk()


def _concluded(
    study: Study, setting: Conditions, contest: Contest, slots: list[str], searched: pl.DataFrame
) -> tuple[SettingSummary, pl.DataFrame]:
    rounds = told(searched)
    real, fitting, room = contest.real, contest.fitting, contest.room
    said = slots + left_out([one.device_bytes for one in real if one not in contest.placed], room)
    said += too_lossy(study, contest)
    large = sum(found.too_large for found in rounds)
    of_search = left_out([0] * large, room) + ([note] if (note := words(rounds)) else [])
    if lossy := sum(found.too_lossy for found in rounds):
        of_search.append(
            f"{plans(lossy)} left out by the search, losing more of quality than is allowed, or not measured"
        )
    asked = against_baseline(study, contest)
    effects = [pair for pair in asked if not pair.first.needs_future]
    winner = min(fitting, key=lambda one: one.rank, default=None)
    rivals = [] if winner is None else rivals_of(study, winner, fitting)
    leading = [] if winner is None else _leading(study, winner, fitting)
    pairs = [*effects, *(Pair(winner, one) for one in rivals if winner is not None)]
    pairs += [Pair(*pair) for pair in itertools.combinations(leading, 2)]
    family = Family(pairs, study.statistics, _names(contest.everyone))
    table = effect_rows(setting, asked, family)
    summary = SettingSummary(
        **setting._asdict(),
        room_bytes=room,
        contestants=len(fitting),
        too_large=len(real) - len(contest.placed),
        too_lossy=len(contest.placed) - len(fitting),
        statement=no_winner(study, contest),
        answers=answers(table),
        notes=said + of_search,
        search=rounds,
        modelled=modelled(study, setting.hardware),
    )
    if winner is None:
        return summary, table
    comparisons = [family.of(winner, one) for one in rivals]
    best, alike = leaders(fitting, comparisons, study.statistics.level)
    return msgspec.structs.replace(
        summary,
        winner=winner.name,
        plan_toml=winner.toml,
        value=winner.value,
        unit=winner.unit,
        device_bytes=winner.device_bytes,
        share_of_bound=winner.share_of_bound,
        loss=winner.loss,
        statement=statement(winner, len(fitting), study, modelled=summary.modelled),
        best=best,
        alike=alike,
        verdict=verdict(comparisons),
        comparisons=comparisons,
        ranking=_ranking(leading, family, _names(contest.everyone)),
        notes=said + of_quality(study, fitting, winner) + notes(study, fitting, len(family)) + of_search,
    ), table


def rivals_of(study: Study, winner: Contestant, fitting: Sequence[Contestant]) -> list[Contestant]:
    """Those that tell most beside the winner: the baseline, the plans that differ from it in eviction or in prefetching
    alone, and the runners-up. Caches of other sizes are no rivals, unless the study asks for them."""
    if winner.costs is None:
        return []
    own = [one for one in fitting if one.kind == winner.kind]
    able = fitting if study.across_capacities else [one for one in fitting if one.plan.cache == winner.plan.cache]
    found = [one for one in [*own, *able] if one.policy == study.baseline][:1]
    found += [one for one in own if one.plan.prefetch == winner.plan.prefetch]
    found += [one for one in own if one.plan.eviction == winner.plan.eviction]
    found += _leading(study, winner, fitting)
    return list({one.toml: one for one in found if one is not winner and one.costs is not None}.values())


def _ranking(leading: Sequence[Contestant], family: Family, named: dict[str, str]) -> list[str]:
    """The best plans in order, those that cannot be told apart level with each other, a line each; [] of one.

    They were chosen on the requests that rank them: like the winner, they look a little better than they are.
    """
    if len(leading) < 2:
        return []
    totals = {named[one.toml]: -one.score for one in leading}
    return in_words(places(totals, [family.of(*pair) for pair in itertools.combinations(leading, 2)]))


def _leading(study: Study, winner: Contestant, fitting: Sequence[Contestant]) -> list[Contestant]:
    """The best plans whose requests' costs are known; with a cache as the winner's, unless the study asks for all."""
    if winner.costs is None:
        return []  # Without the winner the order of the others would mislead.
    able = [one for one in fitting if study.across_capacities or one.plan.cache == winner.plan.cache]
    return sorted((one for one in able if one.costs is not None), key=lambda one: -one.score)[: RUNNERS_UP + 1]


def _names(fitting: Sequence[Contestant]) -> dict[str, str]:
    """What to call plans, by their files: without their weights where these are the same for all."""
    alike = len({one.stored for one in fitting}) == 1
    return {one.toml: one.short if alike else one.name for one in fitting}


def modelled(study: Study, hardware: str | None) -> bool:
    """Whether what is compared are times on a machine that nobody measured."""
    machine = next((one for one in study.machines if one is not None and one.name == hardware), None)
    return machine is not None and not machine.calibrated and study.objective not in WITHOUT_TIME


def statement(winner: Contestant, count: int, study: Study, *, modelled: bool) -> str:
    """Who won."""
    which = plans(count) if study.search is None else f"{plans(count)} at full length"
    words = f"best of {which}: {winner.name}, with {valued(winner.value, winner.ends(study.statistics.level))}"
    words += f" {winner.unit}" + (f" ({MODELLED})" if modelled else "")
    if winner.share_of_bound is not None:
        words += f", {100 * winner.share_of_bound:.0f} % of what clairvoyant decisions allow with that cache"
    if winner.loss is not None:
        words += f", at a loss of quality of {share(winner.loss.value)}"
    return words

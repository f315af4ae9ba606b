"""Searching a large grid: successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) on beginnings of traces.

Every plan is replayed on a beginning of each trace. In each setting (machine, shape, batch) the best share goes on to a
beginning so much longer, and after the last round to the full length. Only what was replayed at full length is
concluded from. With the plans that are kept go the bounds, and the plans of the baseline's policy to compare them with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl

from experiments.study.cells import Cell, Routing, cell_key
from experiments.study.contestants import Contest
from experiments.study.schema import SEARCH
from experiments.study.study_file import Search, Study
from experiments.study.study_json import End, Round
from tracekit.prefix import prefix_steps

LEAST_STEPS = 32
"""Decode steps of a beginning, at least: fewer say nothing."""
SETTING = ("hardware_digest", "model_shape", "batch")
KEPT = ("kept", "baseline", "bound")


def shares(search: Search | None) -> list[float]:
    """The share of each trace's decode steps in each round; the full length comes after."""
    return [] if search is None else [search.keep ** (search.rounds - number) for number in range(search.rounds)]


def work(study: Study, cells: int) -> float:
    """About how many cells of full length the study is as much work as."""
    keep = 1.0 if study.search is None else study.search.keep
    return sum(share * max(1, cells * keep**number) for number, share in enumerate([*shares(study.search), 1.0]))


def search(
    study: Study, cells: Sequence[Cell], replay: Callable[[Sequence[Cell], float], pl.DataFrame]
) -> tuple[list[Cell], pl.DataFrame]:
    """The cells that are worth the full length, in order; and what became of each plan in each round (`SEARCH`).

    `replay` gives the rows of cells in their order, and is told the share of the traces that they replay. A cell that
    fails is among those returned: the study reports it as it reports all that fail.
    """
    left = list(cells)
    rounds = [pl.DataFrame(schema=SEARCH)]
    lengths = _Lengths()
    for number, share in enumerate(shares(study.search), 1):
        short = [lengths.shortened(cell, share) for cell in left]
        if all(cell.routing.steps is None for cell in short):
            break  # that short are these traces: the full length is next
        rows = replay(short, share)
        found = pl.concat(_outcomes(study, part) for _, part in rows.group_by(*SETTING, maintain_order=True))
        rounds.append(found.with_columns(round=pl.lit(number, pl.Int64), share=pl.lit(share)).select(list(SEARCH)))
        plan = [*SETTING, "plan_toml"]
        known = rows.join(found.select(*plan, "outcome"), on=plan, how="left", nulls_equal=True, maintain_order="left")
        on = known.select(pl.col("outcome").is_in(list(KEPT)) | pl.col("error").is_not_null()).to_series()
        left = [cell for cell, kept in zip(left, on, strict=True) if kept]
    return left, pl.concat(rounds).rechunk()


class _Lengths:
    """How many steps a share of a routing is; each routing is opened once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Routing, float], Routing] = {}

    def shortened(self, cell: Cell, share: float) -> Cell:
        """The cell on a beginning of its routing, without bounds; on all of it where that is no shorter."""
        routing = cell.routing
        if (routing, share) not in self._known:
            trace = routing.open()
            steps = prefix_steps(trace, share, LEAST_STEPS)
            self._known[routing, share] = replace(routing, steps=steps if steps < trace.manifest.steps else None)
        begun = self._known[routing, share]
        key = cell_key(begun, cell.plan, cell.machine, cell.shape, False, cell.reshape)
        return replace(cell, key=key, routing=begun, bounds=False)


def _outcomes(study: Study, rows: pl.DataFrame) -> pl.DataFrame:
    """What becomes of each plan of one setting, in the order of the file: `SEARCH` but for the round."""
    assert study.search is not None
    contest = Contest.of(study, rows)
    ranked = sorted(contest.fitting or contest.real, key=lambda one: one.rank)
    count = max(study.search.least, math.ceil(study.search.keep * len(ranked)))
    outcome = {one.toml: "kept" if place < count else "pruned" for place, one in enumerate(ranked)}
    outcome |= {one.toml: "bound" for one in contest.everyone if one.needs_future}
    # Whoever goes on is compared with somebody at its capacity and in its format; and with the best of them all.
    kinds = {one.kind for one in ranked[:count]}
    rivals = [one for one in ranked if one.policy == study.baseline]
    first = {one.kind: one for one in reversed(contest.everyone) if one in rivals}
    for one in [*rivals[:1], *(one for kind, one in first.items() if kind in kinds)]:
        if outcome[one.toml] == "pruned":
            outcome[one.toml] = "baseline"
    values = {one.toml: one.value for one in contest.everyone}
    places = {one.toml: place for place, one in enumerate(ranked, 1)}
    failed = set(rows.filter(pl.col("error").is_not_null())["plan_toml"])
    plans = rows.unique("plan_toml", keep="first", maintain_order=True)
    tomls = plans["plan_toml"].to_list()
    lossy = {one.toml for one in contest.placed if one not in contest.fitting}
    otherwise = {toml: "too lossy" if toml in lossy else "too large" for toml in tomls}
    otherwise |= {toml: "failed" for toml in tomls if toml in failed or toml not in values}
    return plans.select(
        *("hardware", "engine", *SETTING, "plan", "plan_toml"),
        value=pl.Series([values.get(toml) for toml in tomls], dtype=SEARCH["value"]),
        place=pl.Series([places.get(toml) for toml in tomls], dtype=SEARCH["place"]),
        outcome=pl.Series([outcome.get(toml, otherwise[toml]) for toml in tomls], dtype=SEARCH["outcome"]),
    )


def told(rounds: pl.DataFrame) -> list[Round]:
    """One setting's rounds, for people: how many plans there were, what became of them, and where the cut was."""
    found = []
    for part in rounds.partition_by("round", maintain_order=True):
        counts = dict(part["outcome"].value_counts().iter_rows())
        ranked = part.filter(pl.col("place").is_not_null()).sort("place")
        found.append(
            Round(
                round=part["round"][0],
                share=part["share"][0],
                plans=len(part),
                kept=sum(counts.get(name, 0) for name in KEPT),
                pruned=counts.get("pruned", 0),
                too_large=counts.get("too large", 0),
                too_lossy=counts.get("too lossy", 0),
                failed=counts.get("failed", 0),
                last_kept=_end(ranked.filter(pl.col("outcome") == "kept").tail(1)),
                first_pruned=_end(ranked.filter(pl.col("outcome").is_in(["pruned", "baseline"])).head(1)),
            )
        )
    return found


def _end(row: pl.DataFrame) -> End | None:
    return End(plan=row["plan"][0], value=row["value"][0]) if len(row) else None


def words(rounds: Sequence[Round]) -> str:
    """What a search pruned in one setting, as a note beside its winner; nothing where it did nothing."""
    pruned = sum(found.pruned for found in rounds)
    if not pruned:
        return ""
    lengths = " and ".join(f"{100 * found.share:.3g} %" for found in rounds)
    return (
        f"search: {pruned:,} of {rounds[0].plans:,} plans were pruned on the first {lengths} of the decode steps; "
        "what they would have done at full length is not known"
    )

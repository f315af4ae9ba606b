"""A ranking that admits ties: who is beaten by whom, and who cannot be told apart."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from experiments.statistics.comparison import LEAST_EFFECT, Comparison, Quantity, compare, judge


@dataclass(frozen=True, slots=True)
class Place:
    """A plan's place. `rank` is 1 and one more for every plan that was shown to beat it; `ties`: same or unclear.

    Ties are not handed on: A and B may be level, B and C too, and A still beat C. `total` is the cost of all requests.
    """

    name: str
    rank: int
    total: float
    beaten_by: tuple[str, ...]
    ties: tuple[str, ...]


def rank_plans(
    costs: Mapping[str, np.ndarray],
    quantity: Quantity,
    *,
    level: float = 0.95,
    least_effect: float = LEAST_EFFECT,
) -> tuple[list[Place], list[Comparison]]:
    """Places of plans by the costs of each request, [requests] each, and the comparisons of all pairs they follow from.

    All pairs are one family (Holm), so the chance that any of the beatings is an error is at most 1 - `level`. Raises
    StudyError when the costs are not of the same requests.
    """
    totals = {name: float(np.sum(costs[name])) for name in costs}
    pairs = list(itertools.combinations(sorted(totals, key=totals.__getitem__), 2))
    found = [
        compare((a, costs[a]), (b, costs[b]), quantity, level=level, least_effect=least_effect, family=len(pairs))
        for a, b in pairs
    ]
    judged = judge(found, level=level, least_effect=least_effect)
    return places(totals, judged), judged


def places(totals: Mapping[str, float], judged: Iterable[Comparison]) -> list[Place]:
    """The places of plans that cost so much in total, by comparisons of all their pairs: by rank, then by total."""
    beaten: dict[str, list[str]] = {name: [] for name in totals}
    ties: dict[str, list[str]] = {name: [] for name in totals}
    for one in judged:
        if one.outcome == "better":
            beaten[one.second].append(one.first)
        elif one.outcome == "worse":
            beaten[one.first].append(one.second)
        else:
            ties[one.first].append(one.second)
            ties[one.second].append(one.first)
    found = [
        Place(name, 1 + len(beaten[name]), total, tuple(beaten[name]), tuple(ties[name]))
        for name, total in totals.items()
    ]
    return sorted(found, key=lambda place: (place.rank, place.total))


def in_words(places: list[Place]) -> list[str]:
    """A line a place: `1. A, level with B`."""
    return [
        f"{place.rank}. {place.name}" + (f", level with {' and '.join(place.ties)}" if place.ties else "")
        for place in places
    ]

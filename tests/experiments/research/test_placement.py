"""The experiment on placements, on small made routing: every way is compared at equal slots, and alike is alike."""

from pathlib import Path

from experiments.research.placement import contest, table
from experiments.statistics.comparison import judge
from tests.helpers.traces import skewed_trace


def test_every_way_is_compared_with_lru(tmp_path: Path) -> None:
    profile, test = skewed_trace(tmp_path / "a.trace", 1, tokens=400), skewed_trace(tmp_path / "b.trace", 2, tokens=400)
    ratio, family = contest(profile, test, 4)
    found = {one.first: one for one in judge(family)}
    assert 0.3 < ratio < 1
    assert len(found) == 9 and {one.requests for one in found.values()} == {10}
    # Popularity is all there is to know here, beside bursts: knowing it helps, and any experts hinder.
    assert found["all pinned by popularity, 4"].effect > found["LRU beside 2 pinned, even, 4"].effect
    assert found["LRU beside 2 pinned, even, 4"].effect < 0
    assert len(table(list(found.values())).splitlines()) == 11

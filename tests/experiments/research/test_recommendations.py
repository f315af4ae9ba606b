"""The race against every plan: what is found is one of them, and no slower than 97 % of the best."""

from pathlib import Path

import msgspec
import pytest

from experiments.recommend import race
from experiments.research.recommendations import DRAWN, compared
from policies.registry import EVICTION, PREFETCH
from tracekit.synthetic import synthesize
from tracekit.trace import Trace


def test_what_is_found_is_within_three_percent_of_every_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few policies: each pair of them is compiled."""
    monkeypatch.setattr(race, "NOT_OFFERED", {*EVICTION, *PREFETCH} - {"lru", "lfu", "previous-token"})
    synthesize(tmp_path / "t.trace", msgspec.structs.replace(DRAWN, tokens=200))
    found = compared(Trace.open(tmp_path / "t.trace"), "mixtral-8x7b", "rtx3080m", 4096, "hqq-4bit")
    assert found.slots == "3/layer" and found.plans > found.tried
    assert 0.97 * found.best <= found.speed <= found.best * (1 + 1e-9)

"""The plan's table of precision: what it may say, and what it means for a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from engine.decisions.spec import cache_spec
from engine.decisions.tier_spec import popular_places
from engine.plan.plan import Plan, load_plan, plan_from_dict, plan_from_toml
from policies.cache_spec import slots_of
from policies.registry import PRECISION
from policies.tiered_cache import Importance, TieredCache, cache_of
from tests.helpers.traces import make_trace
from tracekit.errors import CapacityError, PlanError, PolicyError, TracekitError

BOTH = {"high": "hqq-4bit", "low": "hqq-2bit", "capacity": "2/layer"}


def test_the_high_format_is_that_of_the_weights(tmp_path: Path) -> None:
    plan = Plan("4/layer", precision=BOTH | {"threshold": 0.3})
    assert plan.weights.experts == "hqq-4bit" and plan.formats == ("hqq-4bit", "hqq-2bit") and not plan.exact
    assert plan.precision is not None and plan.precision.parameters == {"threshold": 0.3}
    assert plan_from_toml(plan.to_toml(), "p") == plan
    (tmp_path / "p.toml").write_text(plan.to_toml())
    assert load_plan(tmp_path / "p.toml") == plan
    named = Plan("4/layer", weights="hqq-4bit-g64", precision={"low": "hqq-2bit", "capacity": "2/layer"})
    assert named.formats == ("hqq-4bit-g64", "hqq-2bit")
    plain = Plan("4/layer")
    assert plain.precision is None and plain.formats == (None,) and plain.exact and "precision" not in plain.to_dict()


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"weights": {"experts": "bf16"}}, "two words for one thing"),
        ({"precision": BOTH | {"low": "hqq-4bit"}}, "give two formats, or no tiers"),
        ({"precision": BOTH | {"low": "hqq-5bit"}}, "unknown weight format 'hqq-5bit'"),
        ({"precision": BOTH | {"capacity": "auto"}}, "'auto' cannot share out one memory"),
        ({"cache": {"capacity": "auto"}}, "'auto' cannot share out one memory"),
        ({"precision": BOTH | {"capacity": "16"}}, "is of each layer just if cache.capacity is"),
        ({"cache": {"capacity": "16"}}, "is of each layer just if cache.capacity is"),
        ({"precision": {"high": "bf16", "capacity": "2/layer"}}, "low"),
        ({"precision": BOTH | {"threshold": "much"}}, "neither a key of precision nor a number"),
        ({"precision": BOTH | {"capacity": "many"}}, "is not understood"),
    ],
)
def test_tables_that_cannot_be(tables: dict[str, Any], complaint: str) -> None:
    given = {"cache": {"capacity": "4/layer"}, "precision": BOTH} | tables
    with pytest.raises(TracekitError, match=complaint) as found:
        plan_from_dict(given, "mine.toml")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("precision", "error", "complaint"),
    [
        ({"rule": "miss-bellow"}, PolicyError, "did you mean 'miss-below'"),
        ({"rule": "popular"}, PlanError, "needs precision.profile"),
        ({"profile": "t.trace"}, PlanError, "reads no profile"),
        ({"capacity": "9/layer"}, CapacityError, "a layer has only 6 experts"),
        ({"capacity": "10kB/layer"}, CapacityError, "the bytes of an expert are unknown"),
    ],
)
def test_what_a_model_cannot_have(precision: dict[str, Any], error: type[TracekitError], complaint: str) -> None:
    plan = Plan("2/layer", precision=BOTH | precision)
    with pytest.raises(error, match=complaint):
        cache_spec([6, 6], [], plan)


def test_bytes_are_as_many_slots_as_fit() -> None:
    """400 and 100 bytes an expert: whatever is left over of each holds no copy of the other format."""
    plan = Plan("1000B/layer", precision=BOTH | {"capacity": "250B/layer"})
    spec = cache_spec([6, 6], [400, 300, 100, 100], plan)
    assert spec.capacity == (2, 3) and spec.low is not None and spec.low.capacity == (2, 2)
    assert set(spec.size.tolist()) == {1}
    assert slots_of(spec) == (2 + 3 + 4) + (2 + 2 + 4)
    plan = Plan("1000B", precision=BOTH | {"capacity": "50%"})
    spec = cache_spec([6, 6], [400, 300, 100, 100], plan)
    assert spec.capacity == (2,) and spec.low is not None and spec.low.capacity == (6,)


def test_a_profile_ranks_the_experts_of_each_layer(tmp_path: Path) -> None:
    assert popular_places(np.array([[5, 9, 9, 1], [0, 0, 3, 0]])).tolist() == [2, 0, 1, 3, 1, 2, 0, 3]
    experts = [[[0], [1]], [[2], [1]], [[2], [3]]]
    make_trace(tmp_path / "t.trace", experts, num_experts=4)
    rule = {"rule": "popular", "profile": str(tmp_path / "t.trace"), "n": 1}
    spec = cache_spec([4, 4], [], Plan("1/layer", precision=BOTH | {"capacity": "1/layer"} | rule))
    assert spec.low is not None and spec.low.popularity is not None
    assert spec.low.popularity.tolist() == [1, 2, 0, 3, 2, 0, 3, 1]


def test_a_rule_travels_beside_its_plan(tmp_path: Path) -> None:
    from engine.plan.carried import carried, resolved

    (tmp_path / "mine.py").write_text("from policies.precision.base import TierRule\nclass Mine(TierRule):\n    pass\n")
    plan = Plan("4/layer", precision=BOTH | {"rule": f"{tmp_path / 'mine.py'}:Mine"})
    found = carried(plan.to_dict())
    (name,) = found.files
    assert found.tables["precision"]["rule"] == f"{name}:Mine"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_bytes(found.files[name])
    again = plan_from_dict(resolved(found.tables, tmp_path / "there", "p"))
    assert again.precision is not None and again.precision.rule == f"{tmp_path / 'there' / name}:Mine"


def test_the_page_means_what_it_says(tmp_path: Path) -> None:
    """docs/precision.md: its plan is one, and its rule of one's own decides as its words say."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "precision.md").read_text()
    plan = plan_from_toml(page.split("```toml\n")[1].split("```")[0], "docs/precision.md")
    assert plan.formats == ("hqq-4bit", "hqq-2bit")
    (tmp_path / "mine.py").write_text(page.split("```python\n")[1].split("```")[0])
    assert plan.precision is not None
    mine = replace(plan.precision, rule=f"{tmp_path / 'mine.py'}:Mine", parameters={"at": 0.5})
    cache = cache_of(cache_spec([8], [], plan.replace(precision=mine)))
    assert isinstance(cache, TieredCache)
    told = Importance([0.6, 0.4], [0, 1])
    assert cache.visit(0, [3, 5], importance=told)[1] == [False, True]
    assert cache.visit(0, [5], importance=Importance([0.4], [0]))[1] == [True], "its low copy is there"
    assert cache.visit(0, [6], importance=Importance([0.4], [0]))[1] == [False]
    for name in PRECISION:
        assert f"| `{name}` |" in page

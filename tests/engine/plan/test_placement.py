"""What a plan says of pinned experts, and the file that names them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w

from engine.plan.carried import carried
from engine.plan.placement import Domain, Placement, Source, by_layer, load_placement, parse_pinned, save_placement
from engine.plan.plan import Plan, load_plan, plan_from_dict
from tracekit.errors import CapacityError, PlanError

SOURCE = Source(trace="a.trace", trace_digest="ab", model="m", requests=["1", "2"])
PINNED = {"0": [1, 3], "1": [0]}
PLACEMENT = Placement(
    by="marginal", slots="2/layer", beside="1/layer", experts_per_layer=[4, 3], pinned=PINNED, source=SOURCE
)


def test_words() -> None:
    assert parse_pinned("layers 0-1,3").layers == (0, 1, 3)
    popular = parse_pinned("popular:2/layer").popular
    assert popular is not None and popular.text == "2/layer"
    assert parse_pinned("a.placement.toml").file == "a.placement.toml"


@pytest.mark.parametrize("text", ["", "layers", "popular", "popular:1MiB", "popular:auto", "a.json", "layers x"])
def test_words_that_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"placement\.pinned"):
        parse_pinned(text)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"placement": {"pinned": "popular:1/layer"}}, "placement.profile, a trace or counts, belong together"),
        ({"placement": {"pinned": "layers 0", "profile": "a.trace"}}, "belong together"),
        ({"placement": {"profile": "a.trace"}}, "belong together"),
        ({"placement": {"pinned": "layers 0", "for": "x"}}, "unknown field"),
        ({"placement": {"pinned": "layers 0", "by": "x"}}, "it is one of label"),
        ({"placement": {"pinned": "p.toml", "by": "label", "detect": 8}}, "give one of them"),
        ({"placement": {"pinned": "p.toml", "detect": 8, "labels": "l"}}, "placement.labels is for placement.by"),
        ({"placement": {"pinned": "p.toml", "detect": 0}}, "detect"),
        ({"cache": {"capacity": "2/layer", "reset": "request"}}, 'cache.reset is now cache.warm: "reset"'),
        ({"cache": {"capacity": "2/layer", "split": "curve"}}, "cache.split_from, a trace, belong together"),
        ({"cache": {"capacity": "2/layer", "split": "even", "split_from": "a"}}, "belong together"),
        ({"cache": {"capacity": "2MiB", "split": "even"}}, "shares out slots"),
        ({"cache": {"capacity": "2/layer; layers 0: 3", "split": "even"}}, "shares out slots"),
    ],
)
def test_plans_that_contradict_themselves(tables: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        plan_from_dict({"cache": {"capacity": "2/layer"}, **tables})


def test_a_popular_amount_that_cannot_be_read() -> None:
    with pytest.raises(CapacityError, match="not understood"):
        plan_from_dict({"cache": {"capacity": "2/layer"}, "placement": {"pinned": "popular:x", "profile": "a"}})


def test_a_plan_with_a_placement_is_read_back() -> None:
    plan = Plan("4/layer", placement={"pinned": "popular:1/layer", "profile": "a.trace"}, split="even")
    assert plan_from_dict(plan.to_dict()) == plan
    assert "placement" not in Plan("4/layer").to_dict()
    assert not plan.alike and plan.per_layer and Plan("4").alike and not Plan("4").per_layer


def test_plans_of_earlier_releases_are_read() -> None:
    assert plan_from_dict({"cache": {"capacity": "4/layer", "reset": "never"}}) == Plan("4/layer")


def test_a_placement_is_read_back_and_written_alike(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    save_placement(PLACEMENT, first)
    assert load_placement(first) == PLACEMENT
    save_placement(load_placement(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert "\n0 = [1, 3]\n" in first.read_text()
    assert PLACEMENT.keys([4, 3], "p") == (1, 3, 4)
    assert by_layer(PLACEMENT.keys([4, 3], "p"), 4) == PLACEMENT.pinned


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("schema = 1", "schema = 2"), "is of schema 2, this version reads 1"),
        (('by = "marginal"', 'by = "chance"'), "it is one of popularity, marginal, even"),
        (("1 = [0]", "2 = [0]"), "no MoE layer of 2"),
        (("1 = [0]", "x = [0]"), "no MoE layer of 2"),
        (("1 = [0]", "1 = [3]"), "layer 1 has no expert 3, only 3"),
        (("1 = [0]", "1 = [0, 0]"), "pins an expert twice"),
        (("[4, 3]", "[4, 4]"), "a model with other MoE layers or experts"),
        (("[pinned]", "[pinned"), "not valid TOML"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_in_one_line(
    changed: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.placement.toml"
    save_placement(PLACEMENT, path)
    text = path.read_text()
    text = text.replace("experts_per_layer = [\n    4,\n    3,\n]", "experts_per_layer = [4, 3]")
    assert changed[0] in text
    path.write_text(text.replace(*changed, 1))
    with pytest.raises(PlanError, match=reason) as caught:
        load_placement(path).keys([4, 3], f"placement {path}")
    assert "\n" not in str(caught.value)


DOMAINS = {
    "a b": Domain(requests=2, pinned={"0": [1]}, counts={"0": [1, 2, 0, 0], "1": [0, 0, 3]}),
    "tables": Domain(requests=1, pinned={"1": [2]}, counts={"0": [0, 0, 0, 9], "1": [1, 0, 0]}),
}


def test_domains_are_read_back(tmp_path: Path) -> None:
    found = msgspec.structs.replace(PLACEMENT, domains=DOMAINS, told_by="labels")
    save_placement(found, tmp_path / "p.toml")
    assert load_placement(tmp_path / "p.toml") == found
    assert '[domains."a b".counts]\n0 = [1, 2, 0, 0]\n' in (tmp_path / "p.toml").read_text()


def test_what_a_cache_held_is_in_the_order_of_its_use(tmp_path: Path) -> None:
    held = Placement(
        by="cache", slots="3", experts_per_layer=[4, 3], pinned={"0": [3, 1], "1": [0]}, used={"0": [0, 2], "1": [1]}
    )
    save_placement(held, tmp_path / "w.placement.toml")
    assert load_placement(tmp_path / "w.placement.toml") == held
    assert held.in_order([4, 3], "w") == (3, 4, 1)
    assert PLACEMENT.in_order([4, 3], "p") == (1, 3, 4)
    with pytest.raises(PlanError, match="as many numbers, by layer"):
        msgspec.structs.replace(held, used={"0": [0, 2]}).in_order([4, 3], "w")


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="tracekit place makes one"):
        load_placement(tmp_path / "none.toml")


def test_a_placement_travels_with_its_plan(tmp_path: Path) -> None:
    """Wherever both are copied to; and a file that was changed on the way is refused."""
    save_placement(PLACEMENT, tmp_path / "mine.placement.toml")
    plan = Plan("4/layer", placement=str(tmp_path / "mine.placement.toml"))
    tables, files = carried(plan.to_dict())
    (name,) = files
    away = tmp_path / "away"
    away.mkdir()
    (away / name).write_bytes(files[name])
    (away / "plan.toml").write_text(tomli_w.dumps(tables))
    found = load_plan(away / "plan.toml")
    assert load_placement(found.placement.pinned or "") == PLACEMENT
    tables, warm = carried(Plan("4/layer", warm=str(tmp_path / "mine.placement.toml")).to_dict())
    assert warm == files
    (away / "warm.toml").write_text(tomli_w.dumps(tables))
    assert load_plan(away / "warm.toml").cache.warm_file == str(away / name)
    (away / name).write_bytes(files[name].replace(b"marginal", b"even"))
    with pytest.raises(PlanError, match="is not the file that the plan was found with"):
        load_plan(away / "plan.toml")

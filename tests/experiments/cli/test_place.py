"""`tracekit place`, and replaying what it wrote."""

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import skewed_trace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    skewed_trace(tmp_path / "profile.trace", 1, tokens=120)
    skewed_trace(tmp_path / "test.trace", 2, tokens=120)
    return tmp_path


def test_a_placement_is_written_and_replayed(folder: Path, call: Call) -> None:
    output = folder / "p.placement.toml"
    more = ["--by", "marginal", "--beside", "2/layer", "--json"]
    code, out, err = call("place", folder / "profile.trace", "--slots", "2/layer", "--output", output, *more)
    assert code == 0, err
    found = json.loads(out)
    assert (found["pinned"], found["by"]) == (6, "marginal") and 0 < found["share_of_choices"] < 1
    replayed = ["--capacity", "4/layer", "--pinned", output, "--no-bounds", "--json"]
    code, out, _ = call("replay", folder / "test.trace", *replayed)
    assert code == 0 and json.loads(out)["hits_by"]["pinned"] > 0
    assert_one_line(*call("replay", folder / "profile.trace", *replayed), "3 of the 3 requests", "--allow-fitted")
    code, out, _ = call("replay", folder / "profile.trace", *replayed, "--allow-fitted")
    assert code == 0 and "NOT EVIDENCE" in out


def test_bad_input_is_one_line(folder: Path, call: Call) -> None:
    trace, output = folder / "profile.trace", folder / "p.placement.toml"
    for arguments, words in (
        (["--slots", "2/layer", "--output", folder / "p.json"], "NAME.placement.toml"),
        (["--slots", "2/layer", "--by", "marginal", "--output", output], "--beside"),
        (["--slots", "9/layer", "--output", output], "a layer has only 8"),
        (["--slots", "2/layer", "--output", folder / "no" / "p.toml"], "no directory"),
    ):
        assert_one_line(*call("place", trace, *arguments), words)
    output.write_text("mine")
    assert_one_line(*call("place", trace, "--slots", "2/layer", "--output", output), "exists")
    assert output.read_text() == "mine"
    test = folder / "test.trace"
    assert_one_line(*call("replay", test, "--capacity", "2/layer", "--pinned", output), "not valid TOML")
    assert_one_line(*call("replay", test, "--capacity", "2/layer", "--pinned", "layers 0"), "MoE layer 0")
    assert_one_line(*call("replay", test, "--capacity", "2/layer; layers 5: 3"), "MoE layer 5")
    assert_one_line(*call("replay", test, "--capacity", "2/layer", "--split", "curve"), "cache.split_from")

"""`tracekit place`, and replaying what it wrote."""

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import domain_trace, skewed_trace


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


def test_a_placement_by_domain_is_written_and_replayed(tmp_path: Path, call: Call) -> None:
    profile, test = (domain_trace(tmp_path / f"{seed}.trace", seed, requests=6) for seed in (1, 2))
    output, labels = tmp_path / "p.placement.toml", tmp_path / "labels.jsonl"
    labels.write_text("".join(f'{{"id": {n}, "domain": "{"ab"[n % 2]}"}}\n' for n in range(6)))
    replayed = ["--capacity", "3/layer", "--no-bounds", "--json"]
    for how, names in ((["--labels", "trace"], ["code", "prose"]), (["--labels", labels], ["a", "b"])):
        code, out, err = call("place", profile.path, "--slots", "2/layer", "--output", output, *how)
        assert code == 0, err
        assert f"for each domain: {names[0]} (3), {names[1]} (3)" in out and "--domain-by label" in out
        more = [] if names[0] == "code" else ["--labels", labels]
        code, out, err = call("replay", test.path, "--pinned", output, "--domain-by", "label", *more, *replayed)
        assert code == 0, err
        assert json.loads(out)["switching"]["switches"] == 6
        assert json.loads(out)["switching"]["copies"] == json.loads(out)["prefetches"] > 0
        output.unlink()
    code, out, _ = call("place", profile.path, "--slots", "2/layer", "--clusters", 2, "--output", output, "--json")
    assert code == 0 and json.loads(out)["domains"] == {"cluster-0": 3, "cluster-1": 3}
    code, out, err = call("replay", test.path, "--pinned", output, "--detect", 8, "--events", tmp_path / "e", *replayed)
    assert code == 0, err
    found = json.loads(out)
    assert found["switching"]["switches"] == 6
    code, out, err = call("replay", test.path, "--decisions", tmp_path / "e", "--no-bounds", "--json")
    assert code == 0, err
    assert json.loads(out)["hits_by"] == found["hits_by"]
    code, out, _ = call("replay", test.path, "--pinned", output, "--detect", 8, "--capacity", "3/layer")
    assert code == 0 and "switches of domain" in out
    bad = call("replay", test.path, "--pinned", output, "--domain-by", "label", *replayed)
    assert_one_line(*bad, "request 0 is of domain 'code', which the placement has not (cluster-0, cluster-1)")
    assert_one_line(*call("replay", test.path, "--detect", 8, *replayed), "choose among a placement's domains")
    bad = call(
        "place", profile.path, "--slots", "2/layer", "--labels", tmp_path / "no", "--output", tmp_path / "q.toml"
    )
    assert_one_line(*bad, "No such file")


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

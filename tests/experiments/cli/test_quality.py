"""`tracekit quality` as a user runs it: the table, the JSON, what is kept, and mistakes in one line."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("hqq.core.quantize")

from experiments.demo.stdlib_text import prompts
from experiments.quality.measurement import load_measurement
from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.quality import small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    asked = [*prompts(7, seed=5), {"id": "again", "prompt": prompts(1, seed=5)[0]["prompt"]}]
    path.write_text("".join(json.dumps(one) + "\n" for one in asked))
    return path


def test_measures_and_goes_on(model: Path, text: Path, tmp_path: Path, call: Call) -> None:
    out, plan = tmp_path / "q", tmp_path / "p.toml"
    plan.write_text('[cache]\ncapacity = "3/layer"\n[weights]\nattention = "hqq-4bit"\n')
    options = ["--text", text, "--plan", plan, "--dtype", "float32", "--device", "cpu", "--output", out]
    code, said, err = call("quality", model, *options, "--weights", "hqq-4bit")
    assert (code, err) == (0, "")
    for words in ("small on 7 documents", "unaltered", "lru, auto, hqq-4bit", "attention hqq-4bit", "again is"):
        assert words in said
    first = load_measurement(out)
    assert first.text.documents == 7 and [pair[0] for pair in first.text.counted_once] == ["again"]
    # One more format: what is known is not measured again, and stays the same to the bit.
    code, said, _ = call("quality", model, *options, "--weights", "hqq-4bit,hqq-2bit-g16", "--json")
    found = json.loads(said)
    assert code == 0 and found["schema"] == 1 and found["documents"]["nats"] == first.documents.nats
    losses = [one["loss"] for one in found["plans"]]
    assert [losses[0]["value"], losses[1]["value"]] == [one.loss.value for one in first.plans]
    assert losses[2]["low"] < losses[2]["value"] < losses[2]["high"]
    divergences = [one["kl_divergence"]["value"] for one in found["plans"]]
    assert 0 < divergences[1] < divergences[2]


def test_without_plans_and_without_a_place(model: Path, text: Path, call: Call) -> None:
    code, said, err = call("quality", model, "--text", text, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert found["plans"] == [] and found["unaltered"]["bits_per_byte"] > 3
    assert found["model"]["dtype"] == "bfloat16" and found["model"]["stored"] == "bf16"


def test_mistakes_are_one_line(model: Path, text: Path, tmp_path: Path, call: Call) -> None:
    assert_one_line(*call("quality", model, "--text", tmp_path / "no.jsonl"), "does not exist")
    assert_one_line(*call("quality", "/nowhere", "--text", text), "no model at")
    assert_one_line(*call("quality", model, "--text", text, "--weights", "hqq-9bit"), "hqq-9bit")
    assert_one_line(*call("quality", model, "--text", text, "--scratch", "much"), "much")
    assert_one_line(*call("quality", model, "--text", text, "--scratch", "10KiB"), "--scratch")
    assert_one_line(*call("quality", model, "--text", "-", "--text", "-"), "once")
    assert_one_line(*call("quality", model, "--text", text, "--output", tmp_path), "holds no measurement")
    assert_one_line(*call("quality", model, "--text", text, "--plan", text), "plan")

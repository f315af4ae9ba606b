"""Forced routing: a configuration and a trace are enough to compare decisions and time; the rest is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from engine.hardware import load_hardware  # noqa: E402  # needs torch
from engine.plan.plan import plan_from_dict  # noqa: E402
from engine.runtime.storage.random_weights import random_model  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from experiments.validation.forced import validate_routing  # noqa: E402
from tests.helpers.traces import make_trace  # noqa: E402
from tracekit.errors import PlanError  # noqa: E402
from tracekit.recorder.models import load_config, load_model  # noqa: E402
from tracekit.recorder.options import RecordOptions  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402
from tracekit.recorder.recorder import record  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

PROMPTS = [Prompt(id="a", prompt="The list is sorted by"), Prompt(id="b", prompt="def main(argv):\n    return")]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_model(CHECKPOINTS / NAMES[0], "float32", "cpu")
    path = tmp_path_factory.mktemp("forced") / "r.trace"
    return Path(record(model, tokenizer, PROMPTS, path, RecordOptions(max_new_tokens=8, lookahead=(1,))))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's configuration and nothing else of it."""
    folder = tmp_path_factory.mktemp("shapes")
    shutil.copy(CHECKPOINTS / NAMES[0] / "config.json", folder)
    return folder


@pytest.mark.parametrize(
    "tables",
    [
        {"cache": {"capacity": "3/layer"}},
        {"cache": {"capacity": "20"}, "prefetch": {"predictor": "gate", "count": 3}},
        {"cache": {"capacity": "4/layer"}, "eviction": {"policy": "score"}},
        {"cache": {"capacity": "600kB"}, "weights": {"experts": "hqq-2bit", "attention": "hqq-4bit"}},
    ],
)
def test_the_engine_follows_the_trace(tables: dict[str, Any], shapes: Path, recorded: Path) -> None:
    if "weights" in tables:
        pytest.importorskip("hqq.core.quantize")
    result = validate_routing(
        shapes, plan_from_dict(tables), Trace.open(recorded), hardware=load_hardware("t4"), dtype="float32"
    )
    assert result.decisions.identical, result.decisions.first_difference
    assert result.decisions.entries > 2 * 8 * 8 and result.tokens.compared == 0
    assert result.passed and "weights being random" in result.verdict
    assert result.time.steps == 14 and result.time.measured_tokens_per_second > 0


def test_the_command_needs_no_weights(shapes: Path, recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", str(shapes), "--routing", str(recorded), "--capacity", "4/layer", "--hardware", "t4"]
    assert run([*arguments, "--random-weights", "--max-steps", "5", "--threshold", "1e9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"]["steps"] == 4 and found["decisions"]["identical"]
    for wrong in ([], ["--random-weights", "--host", "disk"], ["--random-weights", "--prompts", "p.jsonl"]):
        assert run([*arguments, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run(["validate", str(shapes), "--capacity", "4/layer"]) == 2
    assert "--prompts FILE" in capsys.readouterr().err


def test_a_trace_of_other_shapes_is_refused(shapes: Path, recorded: Path, tmp_path: Path) -> None:
    plan, hardware = plan_from_dict({"cache": {"capacity": "4/layer"}}), load_hardware("t4")
    narrow = make_trace(tmp_path / "n.trace", np.tile([0, 1], (3, 8, 1)), num_experts=4)
    with pytest.raises(PlanError, match="routes top-2 of 4 experts in 8 MoE layers, the model top-2 of 8"):
        validate_routing(shapes, plan, narrow, hardware=hardware)
    both = np.tile([0, 1], (4, 8, 1))
    batched = make_trace(
        tmp_path / "b.trace", both, num_experts=8, step=[0, 0, 1, 1], request=[0, 1, 0, 1], position=[0, 0, 1, 1]
    )
    with pytest.raises(PlanError, match="--batch-size 1"):
        validate_routing(shapes, plan, batched, hardware=hardware)
    far = plan_from_dict({"cache": {"capacity": "4/layer"}, "prefetch": {"predictor": "gate", "distance": 2}})
    with pytest.raises(PlanError, match="no lookahead at distance 2"):
        validate_routing(shapes, far, Trace.open(recorded), hardware=hardware)


def test_a_seed_gives_the_same_weights(shapes: Path) -> None:
    config = load_config(shapes)
    one, same, other = (random_model(config, torch.float32, seed) for seed in (1, 1, 2))
    pairs = list(zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True))
    real = [(name, a, b, c) for (name, a), b, c in pairs if not a.is_meta]
    assert all(torch.equal(a, b) for _, a, b, _ in real)
    assert any(not torch.equal(a, c) for _, a, _, c in real)
    assert [name for (name, a), *_ in pairs if a.is_meta] == [name for (name, _), *_ in pairs if ".experts." in name]
    assert float(one.model.rotary_emb.inv_freq[0]) == 1  # a buffer that is no weight, and not zero
    assert one.lm_head.weight is one.model.embed_tokens.weight

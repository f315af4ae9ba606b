"""Validation on the reference models: tokens and decisions agree, and disagreement is noticed and named."""

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from engine.decisions.placing import place  # noqa: E402  # needs torch
from engine.hardware import load_hardware  # noqa: E402
from engine.plan.placement import load_placement, save_placement  # noqa: E402
from engine.plan.plan import plan_from_dict  # noqa: E402
from engine.replay.replay import replay  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from experiments.validation.calibrating import calibration_plans  # noqa: E402
from experiments.validation.comparison import compare_logs, profile_warnings  # noqa: E402
from experiments.validation.forced import validate_routing  # noqa: E402
from experiments.validation.validate import validate  # noqa: E402
from policies.events import Events  # noqa: E402
from tracekit.errors import ModelError, PlanError  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

PROMPTS = (
    Prompt(id="a", prompt="Return a list of the names in the current scope, sorted by"),
    Prompt(id="b", prompt="def read(self, size=-1):\n    if self.closed:\n        raise ValueError("),
)
CAPACITIES = {"mixtral-mini": ("2/layer", "4/layer", "30"), "qwen3-moe-mini": ("6/layer", "50%/layer", "100")}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("prefetch", ["none", "gate"])
@pytest.mark.parametrize(("name", "capacity"), [(name, c) for name in NAMES for c in CAPACITIES[name]])
def test_engine_equals_the_plain_model_and_the_simulator(name: str, capacity: str, prefetch: str) -> None:
    plan = plan_from_dict({"cache": {"capacity": capacity}, "prefetch": {"predictor": prefetch}})
    result = validate(
        CHECKPOINTS / name, plan, PROMPTS, hardware=load_hardware("t4"), dtype="float32", max_new_tokens=12, runs=1
    )
    assert result.tokens.identical and result.tokens.compared == 24
    assert result.decisions.identical, result.decisions.first_difference
    assert result.decisions.entries > 2 * 12 * 8
    assert result.passed
    assert result.time.steps == 22 and result.time.measured_tokens_per_second > 0


def test_policies_that_read_gate_weights_and_layer_order_decide_alike() -> None:
    for eviction, prefetch in (("score", "markov"), ("layer-aware", "previous-token"), ("s3fifo", "history")):
        tables = {"cache": {"capacity": "25"}, "eviction": {"policy": eviction}, "prefetch": {"predictor": prefetch}}
        result = validate(
            CHECKPOINTS / NAMES[0],
            plan_from_dict(tables),
            PROMPTS[:1],
            hardware=load_hardware("t4"),
            dtype="float32",
            max_new_tokens=12,
            runs=1,
        )
        assert result.decisions.identical, (eviction, prefetch, result.decisions.first_difference)
        assert result.tokens.identical


def test_a_static_cache_is_filled_from_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = CHECKPOINTS / NAMES[0]
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}})
    hardware = load_hardware("t4")
    settings = {"hardware": hardware, "dtype": "float32", "max_new_tokens": 8, "runs": 1}
    validate(model, plan, PROMPTS[1:], keep_trace=tmp_path / "profile.trace", **settings)
    tables = {"policy": "static", "profile": str(tmp_path / "profile.trace")}
    static = plan_from_dict({"cache": {"capacity": "3/layer"}, "eviction": tables})
    result = validate(model, static, PROMPTS[:1], keep_trace=tmp_path / "run.trace", **settings)
    assert result.decisions.identical, result.decisions.first_difference
    assert result.tokens.identical
    found = replay(Trace.open(tmp_path / "run.trace"), static)
    assert found.loads == 0 and found.bypasses == found.misses > 0
    assert found.hits_by.pinned == found.hits > 0
    arguments = ["replay", str(tmp_path / "run.trace"), "--policy", "static", "--capacity", "3/layer"]
    assert run(arguments) == 2
    assert "--profile" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "slots"), [("mixtral-mini", "4/layer"), ("qwen3-moe-mini", "10/layer")])
def test_a_placement_beside_a_split_cache_decides_alike(name: str, slots: str, tmp_path: Path) -> None:
    """Pinned experts and a capacity of each layer's own, both from another run's trace, in engine and simulator."""
    settings: dict[str, Any] = {"hardware": load_hardware("t4"), "dtype": "float32", "max_new_tokens": 8, "runs": 1}
    profile = tmp_path / "profile.trace"
    first = plan_from_dict({"cache": {"capacity": "2/layer"}})
    validate(CHECKPOINTS / name, first, PROMPTS[1:], keep_trace=profile, **settings)
    save_placement(place(Trace.open(profile), "2/layer", by="marginal", beside="2/layer"), tmp_path / "p.toml")
    tables = {
        "cache": {"capacity": slots, "split": "curve", "split_from": str(profile)},
        "placement": {"pinned": str(tmp_path / "p.toml")},
        "prefetch": {"predictor": "gate"},
    }
    plan = plan_from_dict(tables)
    result = validate(CHECKPOINTS / name, plan, PROMPTS[:1], keep_trace=tmp_path / "run.trace", **settings)
    assert result.decisions.identical, result.decisions.first_difference
    assert result.tokens.identical
    found = replay(Trace.open(tmp_path / "run.trace"), plan, bounds=False)
    assert found.hits_by.pinned > 0 and found.hits_by.cache > 0


def test_placements_by_domain_and_saved_caches_decide_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the prompts' labels, which the engine's own trace carries; a cache saved by `generate` or by the validation is
    what another run begins with; and by a trace's routing on random weights."""
    settings: dict[str, Any] = {"hardware": load_hardware("t4"), "dtype": "float32", "max_new_tokens": 6, "runs": 1}
    model = CHECKPOINTS / NAMES[0]
    prompts = [Prompt(id=n, prompt=text, domain="ab"[n % 2]) for n, text in enumerate(("x = [", "The", "def f(", "It"))]
    profile, own = tmp_path / "profile.trace", tmp_path / "own.trace"
    validate(model, plan_from_dict({"cache": {"capacity": "2/layer"}}), prompts[2:], keep_trace=profile, **settings)
    labelled = place(Trace.open(profile), "1/layer", labels=Trace.open(profile).manifest.domains)
    save_placement(labelled, tmp_path / "p.toml")
    placement = {"pinned": str(tmp_path / "p.toml"), "by": "label"}
    plan, saved = plan_from_dict({"cache": {"capacity": "3/layer"}, "placement": placement}), tmp_path / "warm.toml"
    result = validate(model, plan, prompts[:2], keep_trace=own, save_warm=saved, **settings)
    assert result.decisions.identical, result.decisions.first_difference
    assert result.tokens.identical and Trace.open(own).manifest.domains == ["a", "b"]
    again = replay(Trace.open(own), plan, bounds=False)
    assert again.switching is not None and again.switching.copies > 0
    assert load_placement(saved).source is not None
    warm = plan_from_dict({"cache": {"capacity": "3/layer", "warm": str(saved)}})
    result = validate(
        model, warm, prompts[1:3], **settings
    )  # one of them brought the cache there: what is compared is not how good it is
    assert result.decisions.identical, result.decisions.first_difference
    routed = validate_routing(model, plan, Trace.open(own), hardware=settings["hardware"], dtype="float32", runs=1)
    assert routed.decisions.identical, routed.decisions.first_difference
    with pytest.raises(PlanError, match="no prompt says its domain"):
        validate(model, plan, PROMPTS, **settings)
    written = tmp_path / "g.placement.toml"
    command = ["generate", str(model), "x", "--capacity", "3/layer", "--max-new-tokens", "3"]
    command += ["--save-warm", str(written)]
    assert run(command) == 0 and load_placement(written).source is None
    assert all(0 < len(held) <= 3 for held in load_placement(written).pinned.values())
    capsys.readouterr()
    assert run(command) == 2 and "exists" in capsys.readouterr().err


def test_a_calibrated_machine_is_measured_on_another_plan_and_its_trace_is_kept(tmp_path: Path) -> None:
    plan = plan_from_dict({"cache": {"capacity": "4/layer"}})
    assert calibration_plans(plan)[0].cache != plan.cache
    result = validate(
        CHECKPOINTS / NAMES[0],
        plan,
        PROMPTS[:1],
        calibration_prompts=PROMPTS[1:],
        dtype="float32",
        max_new_tokens=8,
        runs=2,
        keep_trace=tmp_path / "engine.trace",
    )
    assert result.warnings == []
    # Both sides are repeated: the engine runs twice, between two measurements of the machine.
    assert len(result.time.measured_runs) == len(result.time.simulated_runs) == 2
    assert result.prior is not None and result.prior.inside is not None
    assert f"measured {result.time.measured_tokens_per_second:.2f}" in result.prior.sentence()
    assert result.judged.measured_spread is not None and result.judged.simulated_spread is not None
    assert result.time.calibrated_here and result.time.simulated_tokens_per_second > 0
    trace = Trace.open(tmp_path / "engine.trace")
    assert trace.manifest.complete and trace.manifest.expert_params[0] > 0
    assert int((trace.phase == 1).sum()) == 7  # the last of 8 new tokens is never fed back


def test_a_threshold_fails_by_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"id": "a", "prompt": "The module"}) + "\n")
    arguments = ["validate", str(CHECKPOINTS / NAMES[0]), "--prompts", str(prompts), "--capacity", "4/layer"]
    arguments += ["--dtype", "float32", "--hardware", "rtx3060", "--max-new-tokens", "4", "--json"]
    assert run([*arguments, "--threshold", "1e-9", "--runs", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"] and "ABOVE" in found["verdict"]
    assert len(found["warnings"]) == 1 and "'rtx3060' was not measured" in found["warnings"][0]
    assert found["decisions"]["identical"] and found["tokens"]["identical"]


def test_a_page_shows_both_sides_and_how_to_see_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, page = tmp_path / "p.jsonl", tmp_path / "v.html"
    prompts.write_text(json.dumps({"id": "a", "prompt": "The module"}) + "\n")
    arguments = ["validate", str(CHECKPOINTS / NAMES[0]), "--prompts", str(prompts), "--capacity", "4/layer"]
    arguments += ["--dtype", "float32", "--hardware", "t4", "--max-new-tokens", "6", "--prefetch", "gate"]
    arguments += ["--threshold", "1e9"]
    assert run([*arguments, "--report", str(tmp_path / "no" / "v.html")]) == 2
    assert "is no directory that can be written to" in capsys.readouterr().err
    assert run([*arguments, "--json", "--report", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)["prefetches"]
    assert found["simulated"].keys() == found["measured"].keys() == {"useful", "late", "wasted"}
    # Whether a prefetch is used at all is a decision; whether it is there in time is time.
    for side in found.values():
        assert side["useful"] + side["late"] > 0
    assert found["simulated"]["wasted"] == found["measured"]["wasted"]
    assert sum(found["simulated"].values()) == sum(found["measured"].values())
    text = page.read_text()
    assert "simulation and engine decide alike" in text and "prefetch.predictor = gate" in text
    assert f"--prompts {prompts} --hardware t4 --capacity 4/layer --prefetch gate --max-new-tokens 6" in text


@pytest.mark.parametrize("where", ["auto", "host", "split"])
def test_misses_on_the_host_are_validated_with_a_profile_that_knows_the_cpu(where: str) -> None:
    plan = plan_from_dict({"cache": {"capacity": "2/layer"}, "miss": {"where": where}})
    with pytest.raises(PlanError, match="give --hardware"):
        validate(CHECKPOINTS / NAMES[0], plan, PROMPTS[:1], dtype="float32", max_new_tokens=4)
    with pytest.raises(ModelError, match="0 runs measure nothing"):
        validate(CHECKPOINTS / NAMES[0], plan, PROMPTS[:1], runs=0)
    profile = load_hardware("rtx3060")
    assert profile.cpu is not None
    result = validate(CHECKPOINTS / NAMES[0], plan, PROMPTS[:1], hardware=profile, dtype="float32", max_new_tokens=6)
    assert result.passed and result.tokens.compared == 6


def test_a_profile_of_another_machine_is_doubted() -> None:
    sheet = load_hardware("t4")

    def of(machine: str) -> list[str]:
        described = f"{machine}, measured with Mixtral"
        return profile_warnings(msgspec.structs.replace(sheet, calibrated=True, description=described), "cpu")

    here = f"cpu of {platform.machine()} {platform.system()}"
    assert of(here) == []
    for other in ("cpu of riscv64 Linux", f"cuda of {platform.machine()} {platform.system()}"):
        (warning,) = of(other)
        assert other in warning and here in warning and "\n" not in warning
    assert "not measured" in profile_warnings(sheet, "cpu")[0]


def test_generate_prints_text_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(CHECKPOINTS / NAMES[1])
    arguments = ["generate", model, "The list is", "--capacity", "8/layer", "--max-new-tokens", "6"]
    arguments += ["--dtype", "float32"]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["token_ids"]) == 6 and found["text"]
    assert found["bytes_loaded"]["load"] > 0
    assert run(arguments) == 0
    assert capsys.readouterr().out.strip() == found["text"].strip()


def events(kinds: list[int]) -> Events:
    return Events.of([(visit, kind, 0, 0) for visit, kind in enumerate(kinds)], len(kinds))


def test_logs_that_differ_are_told_where() -> None:
    assert compare_logs(events([0, 3]), events([0, 3])).identical
    other = compare_logs(events([0, 3, 0]), events([0, 0, 0]))
    assert not other.identical and "entry 1" in str(other.first_difference)
    shorter = compare_logs(events([0, 3]), events([0, 3, 0]))
    assert not shorter.identical and "entry 2: simulator nothing" in str(shorter.first_difference)


@pytest.mark.parametrize("weights", ["hqq-4bit", "hqq-2bit", "hqq-3bit-g16"])
def test_quantised_experts_agree_with_the_rounded_model_and_the_simulator(weights: str) -> None:
    pytest.importorskip("hqq.core.quantize")
    tables = {"cache": {"capacity": "500kB"}, "weights": {"experts": weights, "attention": "hqq-4bit"}}
    result = validate(
        CHECKPOINTS / NAMES[0],
        plan_from_dict(tables | {"prefetch": {"predictor": "gate"}}),
        PROMPTS[:1],
        hardware=load_hardware("t4"),
        dtype="float32",
        max_new_tokens=8,
        runs=1,
    )
    assert result.passed, result.verdict
    assert result.tokens.compared == 8 and result.plan["weights"] == tables["weights"]


def test_grouped_kernels_are_validated_against_themselves_over_stacked_experts() -> None:
    """Tokens must equal those of the same kernels, not of transformers' eager experts."""
    launching = pytest.importorskip("engine.runtime.experts.launching")
    if not launching.compiles_for(torch.device("cpu")):
        pytest.skip("Triton's interpreter is not at hand: its extra is not installed, or there is a GPU")
    plan = plan_from_dict({"cache": {"capacity": "4/layer"}, "compute": {"kernels": "grouped"}})
    prompt = Prompt(id="a", prompt="The")
    settings = {"hardware": load_hardware("t4"), "dtype": "float32", "max_new_tokens": 2, "runs": 1}
    result = validate(CHECKPOINTS / NAMES[0], plan, [prompt], **settings)
    assert result.decisions.identical and result.tokens.identical and result.tokens.compared == 2

"""validate and calibrate hold one model at a time, and refuse before loading what the host cannot hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.plan.plan import plan_from_dict  # noqa: E402
from engine.runtime import memory  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from experiments.validation.forced import validate_routing  # noqa: E402
from tests.engine.runtime.models import plan_of  # noqa: E402
from tracekit import Trace  # noqa: E402
from tracekit.errors import CapacityError, HardwareError  # noqa: E402

PEAK = """
import sys, threading, time, torch
torch.set_num_threads(1)
from engine.runtime.calibration import machine_profile, probes
from experiments.cli.main import run
from engine.runtime.memory import release

probes.COLD_BYTES, probes.WIDTH = 1 << 22, 256  # what is probed beside the model has a size of its own
machine_profile.calibrate_machine.__kwdefaults__["copy_sizes"] = (256, 1 << 18, 1 << 20)

def own():  # what the process holds itself: pages of mapped files are the system's cache
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) * 1024

small, large = (line.split() for line in sys.stdin.read().splitlines())
assert run(small) == 0  # what is imported and compiled once
release()  # what it left to the allocator, the other run would use, uncounted
peak, over, before = 0, threading.Event(), own()

def watch():
    global peak
    while not over.wait(0.002):
        peak = max(peak, own())

thread = threading.Thread(target=watch)
thread.start()
assert run(large) == 0
over.set()
thread.join()
print("peak", peak - before, flush=True)
"""
SIZES = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 6, "num_local_experts": 16}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": 2048}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of some 230 MB in bf16."""
    folder = tmp_path_factory.mktemp("models") / "large"
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **HEADS)).to(torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def routing(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    prompts = folder / "p.jsonl"
    prompts.write_text(json.dumps({"id": "a", "prompt": "The module"}) + "\n")
    given = ["--prompts", str(prompts), "--output", str(folder / "t.trace"), "--max-new-tokens", "4"]
    assert run(["record", str(large), *given]) == 0
    return folder / "t.trace"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to tell memory")
@pytest.mark.parametrize("command", ["validate", "validate --routing", "calibrate"])
def test_one_model_at_a_time(command: str, large: Path, routing: Path, tmp_path: Path) -> None:
    """At most experts, slots (of the plan or of calibration, which takes 75 %), dense part, and a tenth."""
    prompts = routing.parent / "p.jsonl"
    first = ["--prompts", str(prompts), "--max-new-tokens", "3", "--capacity", "2/layer", "--threshold", "1e9"]
    if command == "calibrate":
        slots, short = "50%/layer", ["--dtype", "bfloat16", "--rounds", "1", "--repeats", "3", "--force"]
        arguments = [
            ["calibrate", "--output", str(tmp_path / f"{name}.toml"), *short, *model]
            for name, model in (("mini", []), ("large", ["--model", str(large)]))
        ]
    elif command == "validate":
        slots = "75%/layer"
        arguments = [["validate", str(CHECKPOINTS / NAMES[0]), *first], ["validate", str(large), *first]]
    else:
        slots = "75%/layer"
        forced = ["--routing", str(routing), "--random-weights", "--capacity", "2/layer", "--threshold", "1e9"]
        arguments = [["validate", str(CHECKPOINTS / NAMES[0]), *first], ["validate", str(large), *forced]]
    model = memory._empty(large, "auto")
    plan = plan_from_dict({"cache": {"capacity": slots}})
    need = memory.footprint(model, plan)
    budget = need.host + need.device(memory.slots_of(model, plan))
    assert budget > 300e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        input="\n".join(" ".join(one) for one in arguments),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=Path(__file__).parents[3],
        # The code that oneDNN compiles for each shape of a product (12 MB here) does not grow with the model.
        env={**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = int(done.stdout.rpartition("peak ")[2])
    assert peak < 1.1 * budget, f"{peak / budget:.2f} of the budget"


def test_what_the_host_cannot_hold_is_refused_before_it_is_read(
    large: Path, routing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown by a directory without weights: what is refused is the size, not that they are missing."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((large / name).read_bytes())
    prompts = routing.parent / "p.jsonl"
    monkeypatch.setattr(memory, "host_bytes", lambda: 200_000_000)
    for arguments in (
        ["validate", str(tmp_path), "--prompts", str(prompts), "--capacity", "2/layer"],
        ["validate", str(tmp_path), "--routing", str(routing), "--random-weights", "--capacity", "2/layer"],
        ["calibrate", "--output", str(tmp_path / "h.toml"), "--model", str(tmp_path)],
        ["generate", str(tmp_path), "x", "--capacity", "2/layer"],
    ):
        assert run(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert "of host memory, and 200000000 are free" in error and "\n" not in error
    with pytest.raises(HardwareError, match="host memory"):
        validate_routing(tmp_path, plan_of("2/layer"), Trace.open(routing))
    # Experts in four bits fit, but not the model whose tokens are compared with.
    monkeypatch.setattr(memory, "host_bytes", lambda: 220_000_000)
    stored = ["validate", str(tmp_path), "--prompts", str(prompts), "--weights", "hqq-4bit", "--capacity", "1/layer"]
    assert run(stored) == 2
    assert "without offloading" in capsys.readouterr().err


def test_a_device_too_small_for_the_calibrating_cache_gets_a_smaller_one() -> None:
    from experiments.validation.calibrating import measured_here

    tried: list[str] = []

    def load(plan: object) -> object:
        tried.append(plan.cache.capacity)  # type: ignore[attr-defined]
        raise CapacityError("too large")

    with pytest.raises(CapacityError):
        measured_here(load, plan_of("1/layer"), [[1]], 2)  # type: ignore[arg-type]
    assert tried == ["75%/layer", "25%/layer", "1/layer"]

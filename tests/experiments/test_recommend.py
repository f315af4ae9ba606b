"""Recommendations: the best of every plan there is, within memory, and the figures of a replay."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.hardware import Disk, Host, load_hardware
from engine.plan.plan import Plan
from engine.replay.memory import fit_capacity, most_slots
from engine.replay.replay import replay
from engine.shapes import load_shape
from engine.shapes.load import ALONE
from experiments.cli.main import run
from experiments.recommend import recommend
from experiments.recommend.residence import LATENCY_NS, HostMemory
from tests.helpers.traces import make_trace
from tracekit.batched import batched
from tracekit.errors import PlanError, StudyError
from tracekit.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Forty requests of 20 tokens that like few of eight experts, each others, in four layers."""
    rng = np.random.default_rng(1)
    liked = rng.random((40, 1, 4, 8)) ** 4
    experts = (rng.random((40, 20, 4, 8)) * liked).argsort(axis=3)[..., -2:].reshape(800, 4, 2)
    request = np.repeat(np.arange(40), 20)
    place = tmp_path_factory.mktemp("traces") / "t.trace"
    return make_trace(place, experts, num_experts=8, request=request, position=np.tile(np.arange(20), 40))


def test_the_best_of_each_format_fits_and_is_what_a_replay_says(trace: Trace) -> None:
    machine, shape = load_hardware("rtx3060"), load_shape("mixtral-8x7b")
    found = recommend(trace, machine, shape, context=4096, formats=("bf16", "hqq-4bit", "hqq-2bit"))
    assert [choice.plan.weights.experts for choice in found.choices] == ["hqq-2bit", "hqq-4bit"]
    assert list(found.refused) == ["bf16"] and "one slot per layer" in found.refused["bf16"]
    for choice in found.choices:
        again = replay(trace, choice.plan, machine, model_shape=shape, bounds=False)
        assert again.time is not None and again.estimates is not None
        assert again.time == choice.time and again.estimates == choice.estimates
        assert again.estimates.device_bytes <= machine.device.memory_bytes and choice.plan.serve.context == 4096
        assert choice.low is not None and choice.high is not None
        assert choice.low < choice.tokens_per_second < choice.high
        for policy in ("lru", "lfu", "s3fifo"):
            plain = choice.plan.replace(eviction=Plan("1", eviction=policy).eviction, prefetch=Plan("1").prefetch)
            other = replay(trace, plain, machine, model_shape=shape, bounds=False).time
            assert other is not None and other.tokens_per_second is not None
            assert choice.tokens_per_second >= 0.97 * other.tokens_per_second


def test_more_memory_recommends_nothing_slower(trace: Trace) -> None:
    """With misses on the host a smaller cache may be faster, so that one is tried, too."""
    machine, shape = load_hardware("rtx3060"), load_shape("mixtral-8x7b")
    speeds = []
    for gib in (8, 10, 12, 16):
        device = msgspec.structs.replace(machine.device, memory_bytes=gib << 30)
        larger = msgspec.structs.replace(machine, device=device)
        (best,) = recommend(trace, larger, shape, context=4096, formats=("hqq-3bit",)).choices
        speeds.append(best.tokens_per_second)
    assert speeds == sorted(speeds)


def test_the_command_writes_the_plan(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "best.plan.toml"
    arguments = ["recommend", "mixtral-8x7b", "--trace", str(trace.path), "--hardware", "rtx3060", "--weights", "q4_k"]
    assert run([*arguments, "--context", "4096", "--output", str(plan), "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    assert best["plan"]["weights"]["experts"] == "q4_k"
    assert (
        run(
            [
                "replay",
                str(trace.path),
                "--plan",
                str(plan),
                "--hardware",
                "rtx3060",
                "--model-shape",
                "mixtral-8x7b",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["time"]["tokens_per_second"] == best["tokens_per_second"]
    assert run([*arguments, "--output", str(plan)]) == 2
    assert "exists: choose another --output" in capsys.readouterr().err
    assert run([*arguments, "--output", str(tmp_path / "nowhere" / "p.toml")]) == 2
    assert "is no directory" in capsys.readouterr().err
    several = [*arguments, "--context", "4096", "--hardware", "t4", "--output", str(tmp_path / "plans")]
    assert run(several) == 0
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == ["rtx3060.plan.toml", "t4.plan.toml"]
    capsys.readouterr()
    assert run([*arguments, "--memory", "13GiB", "--context", "4096"]) == 0
    assert "q4_k" in capsys.readouterr().out
    assert run([*arguments, "--memory", "4GiB"]) == 2
    error = capsys.readouterr().err
    assert "no format fits rtx3060" in error and error.count("\n") == 1


def test_nothing_that_fits_is_an_error(trace: Trace) -> None:
    with pytest.raises(StudyError, match="no format fits t4"):
        recommend(trace, load_hardware("t4"), load_shape("mixtral-8x22b"), formats=("bf16",))


def test_a_trace_that_routes_otherwise_is_refused_or_reshaped(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", "gpt-oss-20b", "--trace", str(trace.path), "--hardware", "rtx3060", "--weights", "mxfp4"]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "--reshape sizes" in error and error.count("\n") == 1
    assert run([*arguments, "--reshape", "sizes", "--engine", "graph-fused", "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    assert best["time"]["engine"] == "graph-fused" and best["tokens_per_second"] > 0


def test_experts_lie_on_disk_where_the_host_cannot_hold_them(trace: Trace) -> None:
    """As a replay on a machine with that disk says; a format that fits stays in memory; no disk, and it is left out."""
    machine, shape = load_hardware("rtx3060"), load_shape("mixtral-8x7b")
    formats = ("hqq-4bit", "hqq-2bit")
    host = HostMemory(room=20 << 30, disk_bytes_per_s=3 * 10**9)
    found = recommend(trace, machine, shape, context=4096, formats=formats, host=host)
    of_format = {choice.plan.weights.experts: choice for choice in found.choices}
    assert {word: choice.where for word, choice in of_format.items()} == {"hqq-4bit": "disk", "hqq-2bit": "host memory"}
    disk = Disk(read_bytes_per_s=3 * 10**9, latency_ns=LATENCY_NS, host_cache_bytes=20 << 30)
    slow = of_format["hqq-4bit"]
    again = replay(trace, slow.plan, msgspec.structs.replace(machine, disk=disk), model_shape=shape, bounds=False)
    assert again.time == slow.time and again.estimates is not None
    assert slow.estimates.host_bytes == again.estimates.host_bytes == 20 << 30
    assert (slow.plan.serve.host, of_format["hqq-2bit"].plan.serve.host) == ("disk", None)
    with pytest.raises(PlanError, match="--disk-speed 3GB/s"):
        replay(trace, slow.plan, machine, model_shape=shape, bounds=False)
    known = msgspec.structs.replace(machine, disk=disk)
    (kept,) = recommend(trace, known, shape, context=4096, formats=("hqq-2bit",)).choices
    assert kept.plan.serve.host == "memory", "the profile's disk is left alone"
    assert replay(trace, kept.plan, known, model_shape=shape, bounds=False).time == kept.time
    roomy = recommend(trace, machine, shape, context=4096, formats=("hqq-4bit",)).choices[0]
    assert roomy.where == "host memory" and roomy.tokens_per_second > slow.tokens_per_second
    without = recommend(trace, machine, shape, context=4096, formats=formats, host=HostMemory(room=20 << 30))
    assert "the host has 20.0 GiB for them" in without.refused["hqq-4bit"]
    assert [choice.plan.weights.experts for choice in without.choices] == ["hqq-2bit"]


def test_a_plan_on_disk_is_replayed_with_the_same_options(
    trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, of_disk = tmp_path / "p.toml", ["--host-memory", "20GiB", "--disk-speed", "3GB/s", "--hardware", "rtx3060"]
    how = ["mixtral-8x7b", "--trace", str(trace.path), "--weights", "hqq-4bit", *of_disk]
    assert run(["recommend", *how, "--output", str(plan), "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    assert 'host = "disk"' in plan.read_text()
    again = ["replay", str(trace.path), "--plan", str(plan), "--model-shape", "mixtral-8x7b", "--no-bounds", "--json"]
    assert run([*again, *of_disk]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"]["tokens_per_second"] == best["tokens_per_second"]
    assert found["basis"] == "modelled, not measured" and found["time"]["stall_s"]["disk"] > 0
    assert run(["size", *how, "--context", "4096", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["machines"]
    assert row["where"] == row["plan"]["serve"]["host"] == "disk"
    for wrong, said in ((["--hardware", "rtx3060"], "has no [disk]"), ([*of_disk[2:]], "give --host-memory")):
        assert run([*again, *wrong]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_memory_left_over_holds_slots_of_some_layers(trace: Trace) -> None:
    """As one cache for all layers, or split evenly: no fewer slots than so many of each, and still within memory."""
    machine, load = load_hardware("rtx3060"), {"context": 4096}
    manifest = msgspec.structs.replace(
        trace.manifest, expert_params=[10**8] * trace.layers, expert_bytes=[2 * 10**8] * trace.layers
    )
    device = msgspec.structs.replace(machine.device, memory_bytes=39 * 10**8 * 20 // 19)
    machine = msgspec.structs.replace(machine, device=device)
    fitted = fit_capacity(Plan("auto", weights=None, serve=load), manifest, machine, None, ALONE)
    slots = most_slots(fitted, manifest, machine, None, ALONE)
    assert fitted.cache.capacity == "3/layer" and slots == 15  # 19 experts fit, and 4 of them are staging buffers


def test_what_host_memory_is_known() -> None:
    """What is said, else the profile's [host], else what its [disk] is given as a cache."""
    machine = load_hardware("rtx3060")
    assert HostMemory.of(machine) == HostMemory(None, None)
    disk = Disk(read_bytes_per_s=10**9, latency_ns=0, host_cache_bytes=7 << 30)
    machine = msgspec.structs.replace(machine, disk=disk)
    assert HostMemory.of(machine).room == 7 << 30
    machine = msgspec.structs.replace(machine, host=Host(memory_bytes=16 << 30, reserved_bytes=1 << 30))
    assert HostMemory.of(machine).room == 15 << 30 and HostMemory.of(machine, 1).room == 1


def test_a_device_that_computes_in_the_hosts_memory_shares_it(trace: Trace) -> None:
    """Slots and all experts, or slots and the cache before the disk, are no more than there is."""
    machine = load_hardware("rtx4090")
    for room, where in ((40 << 30, "host memory"), (16 << 30, "disk")):
        shared = msgspec.structs.replace(machine, host=Host(memory_bytes=room, holds_dense=True))
        host = HostMemory.of(shared)._replace(disk_bytes_per_s=10**9)
        (one,) = recommend(
            trace, shared, load_shape("mixtral-8x7b"), context=2048, formats=("hqq-4bit",), host=host
        ).choices
        assert one.where == where
        assert one.estimates.device_bytes + one.estimates.host_bytes <= room


def test_a_batch_is_replayed_as_one(trace: Trace) -> None:
    machine, shape = load_hardware("rtx3060"), load_shape("mixtral-8x7b")
    (one,) = recommend(trace, machine, shape, context=2048, batch=4, formats=("hqq-2bit",)).choices
    again = replay(batched(trace, 4), one.plan, machine, model_shape=shape, bounds=False)
    assert again.time == one.time and one.plan.serve.batch == 4


def test_formats_that_lose_too_much_are_left_out(
    trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of which nothing is known, too, as in a study; what is not quantised loses nothing."""
    (tmp_path / "q.json").write_text(json.dumps({"hqq-4bit": 0.01, "hqq-2bit": 0.2}))
    arguments = ["recommend", "mixtral-8x7b", "--trace", str(trace.path), "--hardware", "rtx3060", "--context", "2048"]
    arguments += ["--weights", "bf16,hqq-4bit,hqq-3bit,hqq-2bit", "--quality", str(tmp_path / "q.json")]
    assert run([*arguments, "--quality-loss", "2%"]) == 0
    said = capsys.readouterr().out
    assert "hqq-2bit is left out: it loses 20.0 %, more than 2 %" in said
    assert "hqq-3bit is left out: it is not known what it loses: measure it (tracekit quality)" in said
    assert "1.0 %" in said and "modelled, not measured" in said
    assert run([*arguments, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    losses = {one["plan"]["weights"]["experts"]: one["quality_loss"] for one in plans}
    assert losses == {"hqq-4bit": 0.01, "hqq-3bit": None, "hqq-2bit": 0.2}
    for one in plans:
        assert sum(one["estimates"]["device_parts"].values()) == one["estimates"]["device_bytes"]
        assert one["estimates"]["joules_per_token"] > 0 and one["estimates"]["cost_per_million_tokens"] > 0


def test_mistakes_are_one_line(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.json").write_text('{"hqq-4bit": "much"}')
    model, routed = ["recommend", "mixtral-8x7b"], ["--trace", str(trace.path)]
    here = [*model, *routed, "--hardware", "rtx3060"]
    for arguments, wanted in (
        ([*model, *routed], "Name one with --hardware, or give a model's directory in place of 'mixtral-8x7b'"),
        (["recommend", "trace", "--hardware", "t4"], "which routing? Give --trace"),
        ([*here, "--quality-loss", "2%"], "give --quality too"),
        ([*here, "--quality", str(tmp_path / "q.json")], "Expected `float`, got `str`"),
        ([*here, "--quality", str(tmp_path / "none.json")], "No such file"),
        ([*here, "--quality", str(tmp_path / "q.json"), "--quality-loss", "x"], "Expected `float`"),
        ([*here, "--host-memory", "12"], "--host-memory '12' is no amount of bytes"),
        ([*here, "--disk-speed", "fast"], "--disk-speed 'fast' is no amount of bytes: write 8GiB"),
        ([*here, "--measure-disk", "."], "--measure-disk is of this machine"),
        ([*here, "--tokens", "4"], "give prior:MODEL"),
    ):
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert wanted in error and error.count("\n") == 1, error


def test_without_a_trace_a_prior_is_drawn_and_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """Between the least and the most local model known, the likely one in between."""
    arguments = ["recommend", "mixtral-8x7b", "--hardware", "rtx3060", "--context", "2048", "--tokens", "128"]
    arguments += ["--weights", "hqq-4bit"]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rtx3060"]
    assert found["prior"]["mark"] == "prior, not your model"
    (one,) = found["plans"]
    assert one["low"] < one["tokens_per_second"] < one["high"] and one["calibrated"] is False
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert "least to most local" in said and said.count("prior, not your model") >= 2
    assert "modelled, not measured" in said


def test_this_machine_is_measured_with_the_model(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quick look at it; what it is measured with runs in the engine."""
    pytest.importorskip("torch")
    from experiments.demo.reference_models import CHECKPOINTS, NAMES

    for name, value in (("ROUNDS", 1), ("REPEATS", 3), ("MAX_NEW_TOKENS", 4)):
        monkeypatch.setattr(f"experiments.measuring.{name}", value)
    monkeypatch.setattr("engine.runtime.calibration.machine_profile.COPY_SIZES", (1 << 8, 1 << 20))
    mini = str(CHECKPOINTS / NAMES[0])
    arguments = ["recommend", mini, "--trace", str(trace.path), "--reshape", "sizes", "--device", "cpu"]
    assert run([*arguments, "--weights", "bf16", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["this-machine"]["plans"]
    assert one["calibrated"] and one["time"]["engine"] == "calibrated" and one["tokens_per_second"] > 0
    assert one["experts_in"] == "host memory"

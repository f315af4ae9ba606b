"""`replay`: sums that add up, JSON that is JSON, the same every time, and errors in one line."""

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.curves.stack_curve import lru_curve
from engine.hardware import load_hardware
from engine.plan.plan import Plan, plan_from_dict
from engine.replay import bounds
from engine.replay.passes import run
from engine.replay.replay import replay, replay_passes
from engine.replay.result import Result
from engine.replay.setting import Setting
from tests.helpers.traces import make_trace, random_experts
from tracekit import shards
from tracekit.errors import PlanError, PolicyError, TracekitError
from tracekit.trace import Trace

BYTES = 1_000_000


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Two requests of five prompt tokens and ten decode steps; three layers of eight experts, top-2."""
    rng = np.random.default_rng(7)
    experts = np.sort(random_experts(rng, 30, layers=3), axis=2)
    step = np.concatenate([[0] * 5, np.arange(1, 11), [11] * 5, np.arange(12, 22)])
    phase = np.array(([0] * 5 + [1] * 10) * 2)
    return make_trace(
        tmp_path_factory.mktemp("replay") / "small.trace",
        experts,
        num_experts=8,
        step=step,
        request=np.repeat([0, 1], 15),
        position=np.tile(np.arange(15), 2),
        phase=phase,
        lookahead={1: rng.normal(size=(30, 2, 8)).astype(np.float16)},
        expert_bytes=[BYTES] * 3,
        expert_params=[BYTES // 2] * 3,
    )


def plan(capacity: str = "3/layer", policy: str = "lru", **tables: Any) -> Plan:
    return plan_from_dict({"cache": {"capacity": capacity}, "eviction": {"policy": policy}} | tables)


GATE: dict[str, Any] = {"prefetch": {"predictor": "gate"}}


@pytest.mark.parametrize("tables", [{}, GATE], ids=["demand", "gate"])
def test_phases_and_kinds_add_up(tables: dict[str, Any], trace: Trace) -> None:
    result = replay(trace, plan(**tables), "rtx3060")
    prefill, decode = result.phases.prefill, result.phases.decode
    for name in ("tokens", "lookups", "hits", "misses", "loads", "bypasses", "prefetches", "bytes_loaded"):
        assert getattr(result, name) == getattr(prefill, name) + getattr(decode, name), name
    assert (prefill.tokens, decode.tokens) == (10, 20)
    for counts in (result, prefill, decode):
        assert counts.hits + counts.misses == counts.lookups
        assert counts.loads + counts.bypasses == counts.misses
        assert counts.hits_by.cache + counts.hits_by.pinned + counts.hits_by.prefetch == counts.hits
        assert counts.hit_ratio == pytest.approx(counts.hits / counts.lookups)
        assert counts.bytes_loaded == BYTES * (counts.misses + counts.prefetches)
    assert (result.prefetches > 0) == bool(tables)
    assert result.lookups == len(
        {
            (step, layer, e)
            for step, row in zip(trace.step, trace.experts, strict=True)
            for layer in range(3)
            for e in row[layer]
        }
    )


@pytest.mark.parametrize("tables", [{}, GATE], ids=["demand", "gate"])
def test_times_add_up(tables: dict[str, Any], trace: Trace) -> None:
    time = replay(trace, plan(**tables), "rtx3060").time
    assert time is not None
    assert time.compute_s + time.overhead_s + sum(time.stall_s.values()) == pytest.approx(time.total_s)
    assert time.tpot_ms is not None and time.ttft_ms is not None and time.tokens_per_second is not None
    assert time.tpot_ms.p50 <= time.tpot_ms.p95 <= time.tpot_ms.p99
    # Two prefill steps and twenty decode steps of one token each.
    assert 2 * time.ttft_ms / 1e3 + 20 / time.tokens_per_second == pytest.approx(time.total_s)
    assert 0 < time.link_utilisation <= 1


def test_a_model_of_more_layers_takes_proportionally_longer(trace: Trace) -> None:
    """Mixtral has 32 MoE layers, the trace three: the layers' share of time is scaled, and a note says so."""
    result = replay(trace, plan(), "rtx3060", model_shape="mixtral-8x7b")
    assert result.time is not None and result.time.scale == pytest.approx(32 / 3)
    assert any("scaled" in warning for warning in result.warnings)
    parts = result.time.compute_s + result.time.overhead_s + sum(result.time.stall_s.values())
    assert parts == pytest.approx(result.time.total_s)


def test_a_result_shows_itself(trace: Trace) -> None:
    """As one row, as a chart, and as a table in a notebook, where nothing foreign is markup."""
    result = replay(trace, {"cache": {"capacity": "2/layer"}}, "rtx3060")
    (row,) = result.to_polars().to_dicts()
    assert result.time is not None
    assert row["phases.decode.hits"] == result.phases.decode.hits
    assert row["time.tpot_ms.p99"] == result.time.tpot_ms.p99 if result.time.tpot_ms else None
    assert f"<td>{result.misses}</td>" in result._repr_html_()
    evil = msgspec.structs.replace(result, warnings=["<script>"])
    assert "<script>" not in evil._repr_html_() and "&lt;script&gt;" in evil._repr_html_()
    chart = result.plot().to_dict()
    drawn = {row["part"]: row["value"] for row in chart["datasets"][chart["data"]["name"]]}
    assert sum(drawn.values()) == pytest.approx(result.time.total_s)


def test_paths_will_do(trace: Trace, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(plan().to_toml())
    given = replay(str(trace.path), tmp_path / "p.toml", progress=True)
    assert given.to_dict() == replay(trace, plan()).to_dict()


def test_few_modules_are_handed_a_plan_or_a_trace(trace: Trace, tmp_path: Path) -> None:
    """From its file to a timed result with bounds and regret a plan crosses at most 9 modules, a trace 14."""
    (tmp_path / "p.toml").write_text(plan(prefetch={"predictor": "gate"}).to_toml())
    replay(trace.path, tmp_path / "p.toml", "rtx3060")  # what is loaded on first use is not what is counted
    handed: dict[type, set[str]] = {Plan: {"tracekit.named_toml"}, Trace: set()}

    def see(frame: FrameType, event: str, argument: object) -> None:
        module, code = frame.f_globals.get("__name__", ""), frame.f_code
        if event == "call" and module.partition(".")[0] in ("tracekit", "policies", "engine"):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            for kind, modules in handed.items():
                if any(isinstance(frame.f_locals.get(name), kind) for name in names):
                    modules.add(module)

    sys.setprofile(see)
    try:
        replay(trace.path, tmp_path / "p.toml", "rtx3060")
    finally:
        sys.setprofile(None)
    assert 4 < len(handed[Plan]) <= 9, handed[Plan]
    assert 6 < len(handed[Trace]) <= 14, handed[Trace]


def test_the_course_of_a_replay_ends_when_its_time_does(trace: Trace) -> None:
    setting = Setting.of(trace.manifest, plan(), load_hardware("rtx3060"))
    (done,) = run(trace, setting.spec, [setting.target], keep=True)
    assert done.timeline is not None
    assert len(done.step_ns) == 22 and len(done.visit_end) == 66
    assert done.step_ns.sum() == done.visit_end[-1] == done.timeline.spent.sum()
    assert (np.diff(done.visit_end) > 0).all()


def test_no_plan_is_faster_than_its_bounds(trace: Trace) -> None:
    for capacity in ("2/layer", "4/layer", "8/layer"):
        for policy in ("lru", "lfu-perfect"):
            for tables in ({}, GATE, {"prefetch": {"predictor": "oracle"}}):
                result = replay(trace, plan(capacity, policy, **tables), "rtx3060")
                assert result.time is not None and result.bounds is not None
                assert result.time.tokens_per_second is not None
                assert result.bounds.best_tokens_per_second is not None
                assert result.time.tokens_per_second <= result.bounds.best_tokens_per_second * (1 + 1e-9)
                if not tables:
                    assert result.bounds.hit_ratio is not None
                    assert result.hit_ratio <= result.bounds.hit_ratio


def test_results_are_json_and_the_same_every_time(trace: Trace) -> None:
    def text(result: Result) -> str:
        return json.dumps(result.to_dict(), allow_nan=False, sort_keys=True)

    first = text(replay(trace, plan(**GATE), "rtx3060"))
    assert text(replay(Trace.open(trace.path), plan(**GATE), "rtx3060")) == first
    found = json.loads(first)
    assert {"lookups", "hits", "misses", "hit_ratio", "hits_by", "bytes_loaded", "phases", "time", "bounds"} <= set(
        found
    )
    assert set(found["phases"]) == {"prefill", "decode"}
    assert {"cache", "pinned", "prefetch"} == set(found["hits_by"])
    assert {"tokens_per_second", "tpot_ms", "ttft_ms", "compute_s", "stall_s"} <= set(found["time"])
    assert found["provenance"]["plan"]["prefetch"]["predictor"] == "gate"


@pytest.mark.parametrize("phase", [0, 1], ids=["prefill", "decode"])
def test_a_trace_of_one_phase_only(phase: int, tmp_path: Path) -> None:
    experts = np.array([[[0]], [[1]], [[0]]])
    only = make_trace(tmp_path / "one.trace", experts, phase=phase, expert_bytes=[BYTES], expert_params=[BYTES // 2])
    result = replay(only, plan("2/layer"), "rtx3060")
    json.dumps(result.to_dict(), allow_nan=False)
    assert (result.hits, result.misses) == (1, 2)
    assert result.time is not None
    assert (result.time.tokens_per_second is None) == (phase == 0)
    assert (result.time.ttft_ms is None) == (phase == 1)


def test_experts_that_no_token_chose_cost_nothing(tmp_path: Path) -> None:
    """The second token skips the second layer."""
    experts = np.array([[[0], [1]], [[0], [65535]]])
    trace = make_trace(tmp_path / "holes.trace", experts, num_experts=2)
    result = replay(trace, plan("2/layer"))
    assert (result.lookups, result.hits) == (3, 1)
    assert result.bytes_loaded is None and result.time is None


def test_progress_counts_every_token(trace: Trace) -> None:
    counted: list[int] = []
    replay(trace, plan(), progress=counted.append, bounds=False)
    assert sum(counted) == 30


@pytest.mark.parametrize("hardware", [None, "rtx3060"])
@pytest.mark.parametrize("bounds", [None, True, False])
@pytest.mark.parametrize("tables", [{}, GATE], ids=["demand", "gate"])
def test_progress_ends_at_all_passes(
    trace: Trace, tables: dict[str, Any], bounds: bool | None, hardware: str | None
) -> None:
    counted: list[int] = []
    replay(trace, plan(**tables), hardware, bounds=bounds, progress=counted.append)
    passes = replay_passes(trace, plan(**tables), timed=hardware is not None, bounds=bounds)
    assert sum(counted) == passes * trace.tokens


@pytest.mark.parametrize(
    ("tables", "hardware", "error", "says"),
    [
        ({"eviction": {"policy": "lur"}}, None, PolicyError, "did you mean 'lru'"),
        ({"eviction": {"policy": "lru", "k": 2}}, None, PolicyError, "no parameter 'k'"),
        ({"eviction": {"policy": "./absent.py:Mine"}}, None, PolicyError, "absent.py"),
        ({"prefetch": {"predictor": "gates"}}, None, PolicyError, "did you mean 'gate'"),
        ({"prefetch": {"predictor": "gate", "distance": 2}}, None, PlanError, "--lookahead 2"),
        ({"prefetch": {"predictor": "gate", "distance": 64}}, None, PlanError, "--lookahead 64"),
        ({"cache": {"capacity": "9/layer"}}, None, PlanError, "only 8"),
        ({"weights": {"experts": "hqq-4bit"}}, None, PlanError, "model shape"),
        ({}, "rtx9999", TracekitError, "rtx9999"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value,
)
def test_what_does_not_fit_is_refused_in_one_line(
    tables: dict[str, Any], hardware: str | None, error: type[TracekitError], says: str, trace: Trace
) -> None:
    with pytest.raises(error) as caught:
        replay(trace, plan(**({"cache": {"capacity": "3/layer"}} | tables)), hardware)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("capacity", "hardware"), [("10MiB", None), ("2/layer", "rtx3060")])
def test_without_expert_bytes_neither_byte_capacities_nor_time(
    capacity: str, hardware: str | None, tmp_path: Path
) -> None:
    trace = make_trace(tmp_path / "bare.trace", np.array([[[0]], [[1]]]))
    with pytest.raises(TracekitError) as caught:
        replay(trace, plan(capacity), hardware)
    assert "model shape" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "empty.trace", np.empty((0, 2, 2), np.uint16), num_experts=4)
    with pytest.raises(TracekitError, match="no tokens"):
        replay(trace, plan("2/layer"))


def test_a_replay_never_holds_the_whole_routing(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has memory for some rows at a time only must do without `Trace.experts` and `Trace.weights`."""
    expected = [replay(trace, plan(policy=policy), bounds=False) for policy in ("lru", "arc")]
    curve = lru_curve(trace, "layer")

    def refused(self: Trace) -> None:
        raise AssertionError("read whole")

    monkeypatch.setattr(Trace, "experts", property(refused))
    monkeypatch.setattr(Trace, "weights", property(refused))
    monkeypatch.setattr(shards, "_BLOCK_LOOKUPS", 3 * trace.layers * trace.top_k)
    fresh = Trace.open(trace.path)
    assert [replay(fresh, plan(policy=policy), bounds=False) for policy in ("lru", "arc")] == expected
    assert lru_curve(fresh, "layer").hits.tolist() == curve.hits.tolist()


def test_bounds_of_a_long_trace_are_computed_when_asked_for(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUNDED_LOOKUPS", 100)
    result = replay(trace, plan())
    assert result.bounds is None and any("--bounds" in warning for warning in result.warnings)
    assert replay(trace, plan(), bounds=True).bounds is not None


def test_the_largest_counts_a_plan_may_ask_for_are_survived(trace: Trace) -> None:
    tables: dict[str, Any] = {"prefetch": {"predictor": "oracle", "count": 4096, "staging": 4096}}
    result = replay(trace, plan("0", **tables))
    assert result.hits_by.prefetch == result.hits > 0


def test_the_bound_on_hits_holds_where_demand_overflows(tmp_path: Path) -> None:
    """One slot; the prompt-sized visit demands 2, 0 and 1. LRU hits 0 twice; keeping 2 hits once."""
    experts = np.array([2, 1, 0, 2, 0, 1, 0]).reshape(-1, 1, 1)
    trace = make_trace(tmp_path / "overflow.trace", experts, step=[0, 1, 2, 3, 3, 3, 4])
    result = replay(trace, plan("1"))
    assert result.bounds is not None and result.bounds.hit_ratio is not None
    assert result.hits <= result.bounds.hit_ratio * result.lookups
    assert result.misses >= result.bounds.copies


def test_the_bound_on_decode_holds_for_several_requests(tmp_path: Path) -> None:
    """Three slots, three layers; LRU copies three experts in decode, the bound's decisions four."""
    experts = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]])[:, :, None]
    trace = make_trace(
        tmp_path / "requests.trace", experts, step=[0, 1, 1, 2], phase=[1, 0, 0, 1], expert_bytes=[BYTES] * 3
    )
    setting = Setting.of(trace.manifest, plan("3"))
    fewest = bounds.fewest_decode_loads(trace, bounds.clairvoyant(setting.spec))
    assert fewest.loads.sum() <= replay(trace, plan("3")).phases.decode.misses == 3

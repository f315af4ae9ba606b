"""Experts in two formats in the engine: the copy that the log names is the copy that computes, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.tables import WeightsPlan
from engine.replay.passes import Target, run
from engine.replay.setting import Setting
from engine.runtime import offload, offloaded
from policies.events import BYPASS
from tests.engine.runtime.models import Answer, MakeModel, answer, plan_of, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tracekit.errors import CapacityError, PlanError

torch = pytest.importorskip("torch")
pytest.importorskip("hqq")
from engine.runtime.memory import fit, footprint, slots_of  # noqa: E402  # needs torch
from engine.runtime.storage.rounding import rounded  # noqa: E402
from engine.runtime.storage.slab_layout import expert_parameters  # noqa: E402
from tracekit.recorder.seam import moe_layers  # noqa: E402

HIGH, LOW = "hqq-4bit-g16", "hqq-2bit-g16"
RULES: dict[str, dict[str, Any]] = {
    "miss-below": {"threshold": 0.45},
    "rank": {"n": 1},
    "popular": {"n": 3},
    "mine": {"at": 0.6},
}
MINE = '''"""The low copy will do where it is there already, and of what is light."""

from policies.fields import parameter
from policies.precision.base import TierRule


class Mine(TierRule):
    at = parameter(0.5)

    def low(self, expert, share, rank, popularity, high_there, low_there):
        return low_there or (rank > 0 and share < self.at)
'''


def tiers(folder: Path, rule: str, high: str | None = HIGH, experts: int = 8, layers: int = 3) -> dict[str, Any]:
    """A plan's table of precision under one of RULES; what it needs lies in `folder`."""
    table = {"low": LOW, "capacity": "2/layer", "rule": rule, **RULES[rule]} | ({} if high is None else {"high": high})
    if rule == "popular":
        counts = np.random.default_rng(0).integers(0, 100, (layers, experts)).tolist()
        (folder / "counts.json").write_text(json.dumps({"logical_count": counts}))
        table["profile"] = str(folder / "counts.json")
    if rule == "mine":
        (folder / "mine.py").write_text(MINE)
        table["rule"] = f"{folder / 'mine.py'}:Mine"
    return table


def lows_by_visit(state: Any) -> list[set[int]]:
    """The experts that low copies served at each visit, as the log says."""
    base, experts = len(state.layers) * state.spec.experts, state.spec.experts
    log = state.log
    found: list[set[int]] = [set() for _ in range(len(log.start) - 1)]
    for visit, kind, key, _ in log.rows():
        if kind <= BYPASS and key >= base:
            found[visit].add(key % experts)
    return found


def mixed_answer(make_model: MakeModel, family: str, dtype: str, high: str | None, lows: list[set[int]]) -> Answer:
    """What the un-offloaded model answers if, visit by visit, these experts have the weights of their low copies.

    The family's own code on parameters that are put together anew before each visit.
    """
    model = rounded(make_model(family, dtype), WeightsPlan(experts=high))
    other = rounded(make_model(family, dtype), WeightsPlan(experts=LOW))
    layers = moe_layers(model)
    order = iter(lows)

    def put_together(above: dict[str, Any], below: dict[str, Any]) -> Any:
        def hook(experts: Any, *_: Any) -> None:
            chosen = next(order)
            for name, parameter in expert_parameters(experts).items():
                parameter.data = above[name].clone()
                for expert in chosen:
                    parameter.data[expert] = below[name][expert]

        return hook

    for layer, low in zip(layers, moe_layers(other), strict=True):
        above, below = (
            {name: one.detach().clone() for name, one in expert_parameters(module).items()}
            for module in (layer.experts, low.experts)
        )
        layer.experts.register_forward_pre_hook(put_together(above, below))
    return answer(model)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("family", "dtype", "high"),
    [("mixtral", "float32", HIGH), ("qwen3_moe", "float32", None), ("gpt_oss", "bfloat16", None)],
)
def test_each_expert_computes_with_the_copy_that_the_log_names(
    family: str, dtype: str, high: str | None, rule: str, make_model: MakeModel, tmp_path: Path
) -> None:
    table = tiers(tmp_path, rule, high, experts=12 if family == "qwen3_moe" else 8)
    model = offload(make_model(family, dtype), plan_of("3/layer", precision=table, prefetch={"predictor": "gate"}))
    with offloaded(model) as state:
        found = answer(model)
        lows = lows_by_visit(state)
        assert 0 < sum(map(len, lows)) < int((state.log.kind <= BYPASS).sum())
        assert same(found, mixed_answer(make_model, family, dtype, high, lows))
        state.reset()
        assert same(found, answer(model)) and lows == lows_by_visit(state)


@pytest.mark.parametrize("rule", RULES)
def test_engine_and_simulator_decide_alike_and_copy_the_same_bytes(
    rule: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """On the routing that the tiered model itself produced: a closed loop."""
    table = tiers(tmp_path, rule)
    for number, more in enumerate(
        ({}, {"prefetch": {"predictor": "gate"}, "eviction": {"policy": "score"}}, {"cache": {"warm": "reset"}})
    ):
        plan = plan_of("3/layer", precision=table, **{key: value for key, value in more.items() if key != "cache"})
        if "cache" in more:
            plan = plan_of(precision=table, cache={"capacity": "3/layer", **more["cache"]})
        model = offload(make_model("mixtral", "float32"), plan)
        with offloaded(model) as state:
            trace = record(model, tmp_path / f"{number}.trace", lambda model=model: answer(model))  # type: ignore[misc]
            assert_decided_alike(state.log, trace, state.spec)
            sizes = tuple(state.expert_bytes)
            assert len(sizes) == 6 and sizes[0] > sizes[3]
            (done,) = run(trace, state.spec, [Target(sizes)])
            if number != 1:  # a prefetch that is taken back before it has begun is copied by nobody
                assert int(done.step_bytes.sum()) == sum(state.bytes_loaded.values())
            assert int(done.step_copies[:, :, 3].sum()) == int(done.step_bytes.sum())
            assert done.step_copies[:, 1, 0].sum() == sum(map(len, lows_by_visit(state)))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_threshold_of_zero_is_the_high_format_alone_and_beyond_one_the_low(
    family: str, make_model: MakeModel
) -> None:
    def answered(capacity: str, **tables: Any) -> tuple[Answer, Any]:
        model = offload(make_model(family, "float32"), plan_of(capacity, **tables))
        with offloaded(model) as state:
            return answer(model), state.log

    both = {"high": HIGH, "low": LOW, "capacity": "2/layer"}
    high, log = answered("3/layer", weights={"experts": HIGH})
    found, found_log = answered("3/layer", precision=both | {"threshold": 0.0})
    assert same(found, high) and found_log.rows() == log.rows()
    low, log = answered("2/layer", weights={"experts": LOW})
    found, found_log = answered("3/layer", precision=both | {"threshold": 2.0})
    assert same(found, low) and found_log.kind.tolist() == log.kind.tolist()


def test_memory_is_counted_to_the_byte(make_model: MakeModel, tmp_path: Path) -> None:
    plan = plan_of("3/layer", precision=tiers(tmp_path, "miss-below"))
    need, slots = footprint(make_model(), plan), slots_of(make_model(), plan)
    model = offload(make_model(), plan)
    with offloaded(model) as state:
        assert slots * need.slot + need.low == state.pool.bytes
        assert need.host == state.store.bytes
        assert slots == 3 * 3 + 4 and state.pool.slots == slots + 2 * 3 + 4
        manifest = record(model, tmp_path / "t.trace", lambda: answer(model)).manifest
        as_stored = type(manifest)(
            **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
            | {"expert_bytes": state.expert_bytes}
        )
        setting = Setting.of(as_stored, plan.replace(weights=WeightsPlan()), stored=HIGH)
        assert setting.sizes == tuple(state.expert_bytes)
    room = need.device(slots)
    assert fit(make_model(), plan, room, "here", device=torch.device("cpu")) == plan
    with pytest.raises(CapacityError, match="the largest that fits is 2/layer"):
        fit(make_model(), plan, room - 1, "here", device=torch.device("cpu"))


def test_what_the_engine_does_not_do_with_two_copies_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    table = tiers(tmp_path, "miss-below")
    with pytest.raises(PlanError, match="grouped kernels read one format"):
        offload(make_model(), plan_of(precision=table, compute={"kernels": "grouped"}))
    with pytest.raises(PlanError, match="both copies in host memory"):
        offload(make_model(), plan_of(precision=table), host="disk", slabs=tmp_path / "slabs")


@pytest.mark.parametrize("routing", ["cache-prior", "drop-cold"])
def test_altered_routing_is_served_by_copies_and_replays_exactly(
    routing: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """A routing policy sees what is there of either copy; of its altered choices the rule chooses copies."""
    policy = {"policy": routing} | ({"strength": 0.3} if routing == "cache-prior" else {"share": 0.8})
    plan = plan_of("3/layer", precision=tiers(tmp_path, "miss-below"), routing=policy)
    model = offload(make_model("mixtral", "float32"), plan)
    with offloaded(model) as state:
        trace = record(model, tmp_path / "t.trace", lambda: answer(model))
        assert state.altered is not None and state.altered.replaced + state.altered.dropped > 0
        assert any(lows_by_visit(state))
        assert_decided_alike(state.log, trace, state.spec)

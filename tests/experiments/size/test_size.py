"""Sizing: no better machine is slower in the table, and every figure in it is that of a replay."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hardware import Disk, HardwareProfile, load_hardware
from engine.hardware.host import Host
from engine.hardware.prices import load_prices
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.replay.sensitivities import improved
from engine.replay.setting import Setting
from engine.shapes import load_shape
from experiments.recommend import race
from experiments.size.field import Field
from experiments.size.held import holds
from experiments.size.priced import Priced, priced
from experiments.size.size import NO, PERHAPS, YES, Goal, reached, size, winner
from tests.engine.replay.test_bounds import random_machine, random_trace
from tests.helpers.thorough import THOROUGH
from tests.helpers.traces import make_manifest, make_trace
from tracekit.errors import StudyError
from tracekit.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Forty requests of a prompt of 5 and 15 tokens that like few of eight experts, each others, in four layers."""
    rng = np.random.default_rng(1)
    liked = rng.random((40, 1, 4, 8)) ** 4
    experts = (rng.random((40, 20, 4, 8)) * liked).argsort(axis=3)[..., -2:].reshape(800, 4, 2)
    step = np.maximum(np.arange(20) - 4, 0)
    return make_trace(
        tmp_path_factory.mktemp("size") / "t.trace",
        experts,
        num_experts=8,
        request=np.repeat(np.arange(40), 20),
        position=np.tile(np.arange(20), 40),
        phase=np.tile(np.arange(20) >= 5, 40).astype(np.uint8),
        step=(np.arange(40)[:, None] * 16 + step).reshape(800),
    )


def shipped(*names: str) -> list[Priced]:
    return [priced(load_hardware(name), load_prices(), own=False) for name in names]


def unpriced(machine: HardwareProfile) -> Priced:
    return Priced(msgspec.structs.replace(machine, power=None, price=None), None, False, [])


def bettered(machine: HardwareProfile, rng: np.random.Generator, name: str) -> HardwareProfile:
    """The machine with any of its parts better: more memory, higher rates, shorter times, or as they were."""

    def change(given: Any, rates: tuple[str, ...], times: tuple[str, ...] = ()) -> Any:
        factors = {one: 1 + float(rng.choice([0, rng.random(), 4])) for one in (*rates, *times)}
        more = {one: int(getattr(given, one) * factors[one]) for one in rates}
        return msgspec.structs.replace(given, **more, **{one: int(getattr(given, one) / factors[one]) for one in times})

    rates = ("memory_bandwidth_bytes_per_s", "compute_flops_per_s")
    link = improved(machine, "link", Fraction(int(rng.integers(4, 17)), 4)).link
    link = msgspec.structs.replace(link, copy_engines=int(rng.integers(link.copy_engines, 3)))
    engine, overhead = machine.engine, machine.engine.overhead
    engine = msgspec.structs.replace(
        engine,
        overhead=change(overhead, (), overhead.__struct_fields__),
        fused=engine.fused and change(engine.fused, rates, ("per_call_ns", "per_expert_ns")),
    )
    return msgspec.structs.replace(
        machine,
        name=name,
        device=change(machine.device, ("memory_bytes", *rates)),
        link=link,
        cpu=machine.cpu and change(machine.cpu, rates, ("per_expert_ns", "transfer_ns")),
        engine=engine,
    )


@pytest.fixture(scope="module")
def few_policies() -> Iterator[None]:
    """Fewer combinations to compile: the table's promise does not hang on how many plans race."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kept in (("EVICTION", ("lru", "sieve")), ("PREFETCH", ("none", "previous-token", "gate"))):
            patch.setattr(race, name, {one: getattr(race, name)[one] for one in kept})
        yield


@settings(max_examples=10 * THOROUGH, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.usefixtures("few_policies")
def test_no_better_machine_is_slower(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path_factory.mktemp("better")), random_machine(rng)
    device = msgspec.structs.replace(machine.device, memory_bytes=int(rng.integers(8, 30)) << 20)
    machine = msgspec.structs.replace(machine, device=device)
    once = bettered(machine, rng, "once")
    machines = [bettered(once, rng, "twice"), machine, once]
    goal = Goal(None, None if rng.random() < 0.5 else 10 ** rng.uniform(-4, -2))
    try:
        found = size(trace, [unpriced(one) for one in machines], goal=goal, formats=("bf16",), workers=1)
    except StudyError as error:
        assert "nothing fits" in str(error) or "answers none" in str(error)
        return
    twice, plain, better = ((row.reached in (YES, PERHAPS), row.tokens_per_second or 0.0) for row in found.rows)
    assert twice >= better >= plain


@pytest.mark.parametrize(("seed", "part"), [(275, "device_bandwidth"), (285, "host_bandwidth"), (281, "overhead")])
def test_a_better_part_that_makes_a_plan_slower_is_waited_for(tmp_path: Path, seed: int, part: str) -> None:
    """What ends sooner leaves less time for admitted copies, and the next visit waits: it is counted as before."""
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path), random_machine(rng)
    times = Fraction(int(rng.integers(5, 9)), 4)
    better = msgspec.structs.replace(improved(machine, part, times), name="better")
    plan = Plan("2/layer", weights="bf16", miss="host")
    found = Field(trace, [better, machine], None, workers=1).everywhere([plan])
    own, before = found
    assert own.speed < before.speed
    assert winner(found, "better") == (own, before) and winner(found, "random") == (before, before)


@settings(max_examples=100 * THOROUGH, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_takes_longer_on_a_better_machine(seed: int) -> None:
    """So that it may be held to the worse one's times, whatever the plan."""
    rng = np.random.default_rng(seed)
    machine, manifest = (
        random_machine(rng),
        make_manifest(3, 8, expert_bytes=[1 << 20] * 3, expert_params=[1 << 19] * 3),
    )
    better = bettered(machine, rng, "better")
    word = str(rng.choice(["bf16", "hqq-4bit", "q4_k"]))
    way, where = str(rng.choice(["each", "fused"])), str(rng.choice(["copy", "auto"]))
    plan = Plan("2/layer", weights=word, compute_experts=way, miss=where)
    ours, theirs = (
        Setting.of(manifest, plan, one, load_shape("mixtral-8x7b"), reshape="sizes").costs for one in (better, machine)
    )
    assert ours is not None and theirs is not None
    assert holds(ours, theirs) and holds(theirs, theirs)
    slower = theirs._replace(setup_ns=ours.setup_ns + 1)
    assert not holds(slower, ours)


def test_a_plan_that_begins_in_time_comes_before_a_faster_one(trace: Trace) -> None:
    field = Field(trace, [load_hardware("rtx3060")], load_shape("mixtral-8x7b"))
    found = field.everywhere([Plan(f"{slots}/layer", weights="hqq-4bit", miss="auto") for slots in (1, 2, 3)])
    first = [float(one.done.step_ns[one.done.phase == 0].mean()) * one.setting.scale / 1e9 for one in found]
    for limit in first:
        best = winner(found, "rtx3060", limit)
        assert best is not None
        in_time = [one for one, time in zip(found, first, strict=True) if time <= limit]
        assert best.own is max(in_time, key=lambda one: one.speed)
    late = winner(found, "rtx3060", min(first) / 2)
    assert late == winner(found, "rtx3060") is not None


def test_a_machine_is_held_to_no_other_work() -> None:
    machine, manifest = (
        load_hardware("rtx3060"),
        make_manifest(2, 8, expert_bytes=[1 << 20] * 2, expert_params=[1 << 19] * 2),
    )

    def costs(**how: str) -> Any:
        return Setting.of(manifest, Plan("2/layer", **how), machine).costs  # type: ignore[arg-type]

    assert not holds(costs(miss="host"), costs()) and not holds(costs(), costs(miss="host"))
    assert not holds(costs(compute_experts="fused"), costs()) and not holds(costs(), costs(compute_experts="fused"))
    some = costs()
    assert holds(some, some._replace(host_bytes=5)) and not holds(some._replace(host_bytes=5), some)
    assert holds(some._replace(host_bytes=6), some._replace(host_bytes=5))
    assert not holds(some._replace(host_bytes=4), some._replace(host_bytes=5))
    read = some._replace(host_bytes=5, lanes_ns=np.ones((2, 3), np.int64))
    assert holds(some, read), "what is never read takes no time"
    assert not holds(read, some._replace(host_bytes=5))


def test_every_figure_is_that_of_a_replay(trace: Trace) -> None:
    shape = load_shape("mixtral-8x7b")
    found = size(trace, shipped("rtx3060", "rtx4090"), shape, context=None, batch=1, goal=Goal(1.0, 100.0))
    assert [row.machine for row in found.rows] == ["rtx3060", "rtx4090"] and found.prompt_tokens == 5
    for row, one in zip(found.rows, shipped("rtx3060", "rtx4090"), strict=True):
        assert row.plan is not None and row.time is not None and row.held_to is None
        again = replay(trace, row.plan, one.machine, model_shape=shape, bounds=False)
        assert again.time == row.time and again.time.tokens_per_second == pytest.approx(
            row.tokens_per_second, rel=1e-12
        )
        assert again.estimates == row.estimates and row.estimates is not None
        assert row.low is not None and row.high is not None and row.tokens_per_second is not None
        assert row.low < row.tokens_per_second < row.high
        assert row.estimates.joules_per_token and row.estimates.cost_per_million_tokens
        assert row.reached == (YES if row.low >= 1 else NO if row.high < 1 else PERHAPS)
        assert row.binds in ("link", "device memory", "engine's overhead", "host bandwidth", "device bandwidth")
        assert row.gain is not None and row.gain > 0
    small, large = found.rows
    assert small.tokens_per_second is not None and large.tokens_per_second is not None
    assert large.tokens_per_second > small.tokens_per_second


def test_a_longer_context_takes_room_and_time(trace: Trace) -> None:
    shape, machines = load_shape("mixtral-8x7b"), shipped("rtx4090")
    short, long = (size(trace, machines, shape, context=context).rows[0] for context in (512, 16384))
    assert short.tokens_per_second is not None and long.tokens_per_second is not None
    assert long.tokens_per_second < short.tokens_per_second
    assert short.estimates is not None and long.estimates is not None and long.estimates.device_parts is not None
    assert short.estimates.device_parts is not None
    assert long.estimates.device_parts["kv_cache"] == 32 * short.estimates.device_parts["kv_cache"]


def test_a_machine_that_does_not_fit_is_said_so(trace: Trace) -> None:
    found = size(trace, shipped("t4", "h200"), load_shape("mixtral-8x22b"), formats=("bf16",), goal=Goal(0.001))
    small, large = found.rows
    assert small.plan is None and small.refused is not None and "one slot per layer" in small.refused
    assert (small.binds, small.pareto, large.reached, large.pareto) == ("device memory", None, YES, "best")
    with pytest.raises(StudyError, match="nothing fits any of these machines"):
        size(trace, shipped("t4"), load_shape("mixtral-8x22b"), formats=("bf16",))
    with pytest.raises(StudyError, match="t4 is there twice"):
        size(trace, shipped("t4", "t4"), load_shape("mixtral-8x7b"))


def test_experts_lie_on_disk_where_host_memory_is_too_small(trace: Trace) -> None:
    """And more host memory, or a faster disk, is no slower; what is never read may be as slow as it likes."""
    disk = Disk(read_bytes_per_s=3 * 10**9, latency_ns=100_000, host_cache_bytes=8 << 30)
    small = msgspec.structs.replace(load_hardware("rtx3060"), host=Host(memory_bytes=8 << 30), disk=disk)
    machines = [
        msgspec.structs.replace(small, name="roomy", host=Host(memory_bytes=16 << 30)),
        msgspec.structs.replace(small, name="fast", disk=msgspec.structs.replace(disk, read_bytes_per_s=6 * 10**9)),
        msgspec.structs.replace(small, name="whole", host=Host(memory_bytes=64 << 30)),
        small,
    ]
    rows = size(trace, [unpriced(one) for one in machines], load_shape("mixtral-8x7b")).rows
    assert [row.where for row in rows] == ["disk", "disk", "host memory", "disk"]
    roomy, fast, whole, plain = (row.tokens_per_second or 0.0 for row in rows)
    assert whole > roomy > plain > 0 and whole > fast > plain


def test_prompts_alone_tell_no_speed(tmp_path: Path) -> None:
    experts = np.zeros((5, 2, 2), np.uint16) + np.arange(2, dtype=np.uint16)
    prompts = make_trace(tmp_path / "p.trace", experts, num_experts=8, phase=np.zeros(5, np.uint8))
    with pytest.raises(StudyError, match="decodes nothing"):
        size(prompts, shipped("t4"), load_shape("mixtral-8x7b"))


def test_levels_of_routing_are_the_ends(trace: Trace, tmp_path: Path) -> None:
    """The same routing three times is one speed; the least local one is the lower end."""
    shape = load_shape("mixtral-8x7b")
    rng = np.random.default_rng(2)
    even = rng.random((200, 4, 8)).argsort(axis=2)[..., :2]
    spread = make_trace(tmp_path / "even.trace", even, num_experts=8)
    (row,) = size({"likely": trace, "low": trace}, shipped("rtx3060"), shape).rows
    assert row.low == row.high == row.tokens_per_second
    (row,) = size({"low": spread, "likely": trace, "high": trace}, shipped("rtx3060"), shape).rows
    assert row.low is not None and row.high is not None
    assert row.high == row.tokens_per_second and row.low < row.high
    alone = replay(spread, row.plan, load_hardware("rtx3060"), model_shape=shape, bounds=False).time
    assert alone is not None and alone.tokens_per_second == pytest.approx(row.low)


@pytest.mark.parametrize(
    ("goal", "found"),
    [
        (Goal(), None),
        (Goal(9), YES),
        (Goal(10.5), PERHAPS),
        (Goal(13), NO),
        (Goal(9, 1.0), YES),
        (Goal(9, 0.5), NO),
        (Goal(None, 1.0), YES),
        (Goal(10.5, 0.5), NO),
    ],
)
def test_reached(goal: Goal, found: str | None) -> None:
    assert reached(goal, 11, 10, 12, 900) == found


def test_reached_without_an_interval_or_a_prompt() -> None:
    assert reached(Goal(11), 11, None, None, None) == YES and reached(Goal(12), 11, None, None, None) == NO
    assert reached(Goal(11, 1.0), 11, None, None, None) == PERHAPS

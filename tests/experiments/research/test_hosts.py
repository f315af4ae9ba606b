"""The experiment on what a miss becomes: machines that differ as said, plans of equal slots, decisions by machine."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.hardware import load_hardware
from engine.plan.capacity import Capacity
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.shapes import load_shape
from experiments.research.domains import cost
from experiments.research.hosts import claims
from experiments.research.hosts.__main__ import main
from experiments.research.hosts.chart import SHOWN, crossing
from experiments.research.hosts.contest import (
    ADMISSIONS,
    BASE,
    BESIDE,
    ENGINE,
    HOSTS,
    MACHINE,
    SHARED,
    WEIGHTS,
    contest,
    modelled,
    on_all,
    plans,
    steps,
    with_host,
)  # fmt: skip
from experiments.research.hosts.sweep import ALONE, RATIOS, SWEPT, Point, crosses, sweep
from experiments.research.hosts.tables import matrices, right
from experiments.research.placement import one_token_a_step
from tests.helpers.traces import domain_trace, make_trace
from tracekit.errors import TraceError
from tracekit.priors.traces import prior_trace
from tracekit.rows import PREFILL
from tracekit.trace import Trace

SHAPE = "mixtral-8x7b"


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Three layers of eight experts, top-2, a token a step, with gate weights."""
    folder = tmp_path_factory.mktemp("hosts")
    made = domain_trace(folder / "made.trace", 3, requests=16)
    weights = np.random.default_rng(0).random(made.experts.shape)
    return make_trace(
        folder / "weighed.trace",
        made.experts,
        num_experts=8,
        request=made.request,
        position=made.position,
        weights=weights / weights.sum(axis=2, keepdims=True),
    )


@pytest.mark.parametrize("shape", [SHAPE, "qwen3-30b-a3b"])
def test_machines_differ_by_their_hosts_alone(shape: str) -> None:
    model, shipped = load_shape(shape), load_hardware(MACHINE, ENGINE)
    size = model.expert_bytes(WeightFormat.parse(WEIGHTS))
    machines = modelled(shape)
    for name, ratio in HOSTS.items():
        machine = machines[name]
        assert machine.cpu is not None and (machine.device, machine.link) == (shipped.device, shipped.link)
        taken = machine.cpu.expert(size, model.expert_params).ns(1)
        assert taken == pytest.approx(ratio * machine.copy_ns(size), rel=1e-4)
    shared, even = machines[SHARED].cpu, machines["even"].cpu
    assert shared is not None and even is not None
    assert (shared.slowdown_percent, shared.link_slowdown_percent) == (BESIDE, BESIDE)
    assert shared.expert(size, 1).ns(1) == even.expert(size, 1).ns(1)


def test_what_a_machine_decides_is_decided_on_each(routed: Trace) -> None:
    machines = modelled(SHAPE)
    slow, _, fast, _ = range(len(machines))
    found = {where: on_all(routed, Plan("3/layer", weights=WEIGHTS, miss=where), list(machines.values()), SHAPE)
             for where in ("copy", "host", "auto", "split")}  # fmt: skip
    # One token a step: by its profile a host four times slower than a copy takes none, one four times faster all.
    np.testing.assert_array_equal(found["auto"].ns[slow], found["copy"].ns[slow])
    np.testing.assert_array_equal(found["auto"].ns[fast], found["host"].ns[fast])
    assert found["host"].ns[slow].sum() > found["copy"].ns[slow].sum() > found["copy"].ns[fast].sum() * 0.999
    assert found["host"].ns[fast].sum() < found["copy"].ns[fast].sum()
    # Plans that ask no machine are decided once, and the others' times are of decisions of their own.
    alone = on_all(routed, Plan("3/layer", weights=WEIGHTS, miss="split"), [machines["fast"]], SHAPE)
    np.testing.assert_array_equal(alone.ns[0], found["split"].ns[fast])


def test_tables_hold_every_plan_and_what_was_found_is_kept(routed: Trace, tmp_path: Path) -> None:
    machines = modelled(SHAPE)
    found = {3: contest(routed, plans(3), machines, SHAPE, tmp_path / "three")}
    assert (tmp_path / "three.npz").exists() and list(found[3]) == list(plans(3))
    again = contest(routed, {}, machines, SHAPE, tmp_path / "three")
    assert all((again[name].ns == one.ns).all() for name, one in found[3].items())
    text = matrices(found, list(machines))
    for name in ADMISSIONS:
        rows = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert len(rows) == len(machines) and all(row.count("|") == 6 for row in rows)
    assert text.count("| all | 0 |") == len(machines)
    # A bound on what is taken in never lowers the misses, at one size and place.
    misses = [found[3][f"host, {count} a step"].misses.sum() for count in (1, 2, 4)]
    assert misses == sorted(misses, reverse=True) and misses[-1] >= found[3]["host, all"].misses.sum()
    chosen = right(found, machines, SHAPE, routed.tokens)
    assert chosen.count("| host |") == len(machines)
    table, points = sweep(routed, (3,), SHAPE, tmp_path / "sweep")
    assert len(points) == 2 * len(SWEPT) * len(RATIOS) and "3 slots, split, all, memory shared" in table
    # The slower the host, the slower is what waits for it.
    for memory in (ALONE, "memory shared"):
        effects = [one for _, name, where, _, one in points if (name, where) == ("host, 2 a step", memory)]
        assert effects == sorted(effects)
    drawn = crossing([Point(model, slots, *point[1:]) for model, slots in SHOWN.items() for point in points])
    assert "memory shared" in drawn.to_json()


@pytest.mark.parametrize(
    ("effects", "start"),
    [([-1.0, 1.0, 2.0], 2**0.5), ([1.0, 1.0, 1.0], 2.0), ([1.0, 1.0, -1.0], None), ([1.0, -1.0, 3.0], 2**-0.25)],
)
def test_where_an_effect_begins_for_good(effects: list[float], start: float | None) -> None:
    found = crosses([2.0, 1.0, 0.5], effects)
    assert found == (start if start is None else pytest.approx(start))


@given(layers=st.integers(2, 60), experts=st.integers(1, 512), share=st.floats(0.01, 1), whole=st.integers(1, 59))
def test_whole_layers_and_the_rest_are_the_same_memory(layers: int, experts: int, share: float, whole: int) -> None:
    slots = max(1, int(share * experts))
    if whole >= layers or whole * experts > slots * layers:
        return
    capacity, pinned = claims.mixed(layers, experts, slots, whole)
    of_each, _ = Capacity.parse(capacity).groups([experts] * layers, experts, [])
    assert sum(of_each) == slots * layers and of_each[:whole] == (experts,) * whole
    assert max(of_each[whole:]) - min(of_each[whole:]) <= 1
    assert pinned == f"layers 0-{whole - 1}"


def test_published_claims_are_asked(routed: Trace, tmp_path: Path) -> None:
    text = claims.few_or_whole(routed, modelled(SHAPE), SHAPE, tmp_path / "claims")
    assert "4 (2 top-k" in text and "4 a layer, or 1 of 3 whole: copied" in text
    found = contest(routed, {}, {}, SHAPE, tmp_path / "claims")
    bare = found[claims.BARE_COPY]
    assert bare.misses.sum() == bare.lookups.sum() and (bare.ns.sum(axis=1) > found["copied, 2"].ns.sum(axis=1)).all()
    hosted = found[claims.BARE_HOST]
    assert hosted.copies.sum() == 0 and hosted.ns[0].sum() > bare.ns[0].sum() and hosted.ns[2].sum() < bare.ns[2].sum()


def test_a_host_is_fitted_to_what_was_published(tmp_path: Path) -> None:
    trace = prior_trace(tmp_path / "drawn.trace", [claims.EXPERTS] * claims.LAYERS, claims.TOP_K, tokens=24, requests=6)
    ratio = claims.fitted(trace)
    machine = with_host(claims.SHAPE, ratio, claims.INSERTED)
    ns = cost(trace, claims.inserted()[claims.BARE_HOST], claims.SHAPE, [machine]).ns.sum()
    assert trace.tokens * 1e9 / ns == pytest.approx(claims.WITHOUT, rel=1e-3)
    # What the copies of its slots take is what the source says of them: 4.1 GiB.
    size = load_shape(claims.SHAPE).expert_bytes(WeightFormat.parse(claims.INSERTED))
    assert size * claims.SLOTS * (claims.LAYERS - claims.RESIDENT) == pytest.approx(4.1 * 2**30, rel=0.03)


def test_gate_weights_are_needed_and_kept(
    routed: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = one_token_a_step(routed, tmp_path / "stepped.trace")
    np.testing.assert_array_equal(made.weights, routed.weights)
    assert (made.phase == PREFILL).sum() == 16 * 16
    domain_trace(tmp_path / "mixtral-mini.trace", 1)
    with pytest.raises(TraceError, match="no gate weights"):
        steps("mixtral-mini", tmp_path)
    monkeypatch.setattr("sys.argv", ["hosts", str(tmp_path)])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert BASE in plans(3)

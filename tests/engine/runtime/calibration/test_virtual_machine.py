"""Calibration on a machine in virtual time, whose true costs are known: what it says is within 5 % of them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from engine.hardware import Device, EngineProfile, HardwareProfile, Link, Overhead  # noqa: E402
from engine.runtime import offload, offloaded  # noqa: E402
from engine.runtime.calibration import engine_costs as calibration  # noqa: E402
from engine.runtime.calibration.machine_profile import link_of  # noqa: E402
from engine.runtime.calibration.probes import burst, copies_on, timed  # noqa: E402
from engine.runtime.links.cuda_link import IN_FLIGHT, CudaLink  # noqa: E402
from tests.engine.runtime.calibration.virtual_machine import (  # noqa: E402
    Costs,
    HandedOver,
    VirtualLink,
    VirtualMachine,
    running_on,
)
from tests.engine.runtime.models import MakeModel, plan_of  # noqa: E402

PROMPTS = [[3], [14, 15], [9, 26, 5], [7, 1], [2, 40, 50]]  # short: no visit demands more than there are slots
SIZES = (256, 1 << 14, 1 << 16, 1 << 18, 1 << 20)


@pytest.fixture(params=[1, 2], ids=["one copy in flight", "two"])
def machine(request: pytest.FixtureRequest) -> Iterator[VirtualMachine]:
    yield VirtualMachine(Costs(in_flight=request.param))


def test_overheads_are_the_devices_and_not_the_hosts(machine: VirtualMachine, make_model: MakeModel) -> None:
    """The dense part of 300 us is not 920 because the host had long handed the experts before it over; an expert is
    100 us and not the 5 of its launch; asking for a copy is the 30 us in which nothing is computed."""
    costs = machine.costs
    model = offload(make_model("mixtral"), plan_of("6/layer"))
    with offloaded(model) as state, running_on(machine, model, state):
        found = calibration.engine_costs([calibration.Workload(model, PROMPTS, 12)], 1, machine.time)
    overhead = found.overhead
    assert overhead.per_expert_ns == pytest.approx(costs.expert, rel=0.05)
    assert overhead.per_copy_ns == pytest.approx(costs.ask, rel=0.05)
    assert found.per_pair_ns == pytest.approx(costs.pair, rel=0.05)
    # Between two visits the device computes the dense part, which the host tells it of while it still computes experts.
    per_layer = costs.dense + costs.readback + costs.decide + costs.launch
    assert overhead.per_layer_ns == pytest.approx(per_layer, rel=0.05)
    assert found.visits > 100


def test_the_hosts_clock_would_say_otherwise(machine: VirtualMachine, make_model: MakeModel) -> None:
    """Which is why it is not asked: by it an expert takes its launch, and what it computes is taken for dense part."""
    model = offload(make_model("mixtral"), plan_of("6/layer"))
    with offloaded(model) as state, running_on(machine, model, state):
        found = calibration.engine_costs(
            [calibration.Workload(model, PROMPTS, 12)], 1, lambda: HandedOver(machine)
        ).overhead
    assert found.per_expert_ns < machine.costs.expert / 4
    assert found.per_layer_ns > 1.3 * machine.costs.dense


def test_the_link_is_what_it_is(machine: VirtualMachine, make_model: MakeModel) -> None:
    costs = machine.costs
    model = offload(make_model("mixtral"), plan_of("6/layer"))
    with offloaded(model) as state, running_on(machine, model, state):
        latency, rate = calibration.measure_link(state, machine.time)
    assert latency == pytest.approx(costs.copy_setup, rel=0.05)
    assert rate == pytest.approx(costs.bytes_per_s, rel=0.05)


def test_a_profile_foresees_many_copies_in_a_row(machine: VirtualMachine) -> None:
    """A link measured copy by copy, and told how many are in flight, takes for twelve what it really takes."""
    machine.costs = replace(machine.costs, ask=0)
    link = VirtualLink(machine)
    host, target = (torch.zeros(1 << 23, dtype=torch.uint8) for _ in range(2))
    figures = copies_on(link, machine.time, host, target, SIZES, 3)
    latency, rates = link_of(SIZES, [figure.ns for figure in figures])
    profile = HardwareProfile(
        name="virtual",
        description="",
        calibrated=True,
        source=[],
        device=Device(memory_bytes=1 << 30, memory_bandwidth_bytes_per_s=10**12, compute_flops_per_s=10**12),
        link=Link(
            host_to_device_bytes_per_s=rates[-1].bytes_per_s,
            latency_ns=latency,
            copy_engines=link.in_flight,
            rates=rates,
        ),
        engine=EngineProfile(name="test", overhead=Overhead(per_layer_ns=0, per_step_ns=0, gate_readback_ns=0)),
    )
    for size in SIZES[1:]:
        engine, wire = [0] * profile.link.copy_engines, 0
        for _ in range(12):  # by the words of `Link`: one more is set up while another's bytes move
            wire = max(engine[0] + profile.link.latency_ns, wire) + profile.wire_ns(size)
            engine = [*engine[1:], wire]
        copies = [(host[:size], target[:size])] * 12
        assert timed(machine.time(), lambda copies=copies: burst(link, copies)) == pytest.approx(wire, rel=0.05)


def test_copies_in_flight_are_those_that_the_link_hands_over() -> None:
    assert CudaLink.in_flight == IN_FLIGHT == 2

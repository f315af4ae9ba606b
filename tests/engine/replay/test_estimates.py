"""Memory, energy and cost of a token, against sums done by hand."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.hardware import Disk, HardwareProfile, Power, Price, hardware_names, load_hardware
from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from engine.replay.result import Result
from tests.helpers.traces import make_trace
from tracekit.errors import HardwareError
from tracekit.trace import Trace

BYTES = 1_000_000
POWER = Power(device_idle_w=10, device_busy_w=110, host_idle_w=50, host_busy_w=90, link_busy_w=7)
HIRED = Price(currency="EUR", per_hour=3.6)
BOUGHT = Price(currency="EUR", purchase=1000, lifetime_hours=1000, electricity_per_kwh=0.5)


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Ten decode steps of one layer; two experts take turns."""
    experts = (np.arange(10) % 2)[:, None, None]
    return make_trace(tmp_path / "t.trace", experts, num_experts=4, expert_bytes=[BYTES], expert_params=[BYTES // 2])


def on(trace: Trace, **fields: Any) -> tuple[Result, HardwareProfile]:
    machine = msgspec.structs.replace(load_hardware("t4"), power=None, price=None)
    machine = msgspec.structs.replace(machine, **fields)
    return replay(trace, plan_from_dict({"cache": {"capacity": "1/layer"}}), machine), machine


def test_energy_is_idle_power_always_and_busy_power_at_work(trace: Trace) -> None:
    result, _ = on(trace, power=POWER)
    time, found = result.time, result.estimates
    assert time is not None and found is not None and found.joules_per_token is not None
    joules = 60 * time.total_s + 100 * time.compute_s + 40 * time.overhead_s + 7 * time.link_utilisation * time.total_s
    assert found.joules_per_token == pytest.approx(joules / 10)
    assert found.cost_per_million_tokens is None and found.currency is None
    assert any("power" in line for line in found.inputs)


def test_a_hired_machine_costs_its_hours(trace: Trace) -> None:
    result, _ = on(trace, price=HIRED)
    assert result.time is not None and result.estimates is not None
    assert result.estimates.cost_per_million_tokens == pytest.approx(1e6 * result.time.total_s * 0.001 / 10)
    assert result.estimates.currency == "EUR" and result.estimates.joules_per_token is None


def test_a_bought_machine_costs_wear_and_electricity(trace: Trace) -> None:
    result, _ = on(trace, power=POWER, price=BOUGHT)
    assert result.time is not None and result.estimates is not None
    joules = result.estimates.joules_per_token
    assert joules is not None
    expected = (result.time.total_s / 3600 + joules * 10 / 3.6e6 * 0.5) / 10 * 1e6
    assert result.estimates.cost_per_million_tokens == pytest.approx(expected)
    # Electricity that nobody measured is not free: no power, no cost.
    assert on(trace, price=BOUGHT)[0].estimates.cost_per_million_tokens is None  # type: ignore[union-attr]


def test_memory_is_slots_and_the_model(trace: Trace) -> None:
    found = on(trace)[0].estimates
    assert found is not None
    assert found.device_bytes == (1 + 4) * BYTES, "one slot and four staging buffers"
    assert found.host_bytes == 4 * BYTES


def test_a_disk_leaves_the_host_its_cache(trace: Trace) -> None:
    disk = Disk(read_bytes_per_s=10**9, latency_ns=0, host_cache_bytes=3 << 20)
    found = on(trace, disk=disk)[0].estimates
    assert found is not None and found.host_bytes == 3 << 20


@pytest.mark.parametrize("name", hardware_names())
def test_shipped_machines_draw_power_and_say_why_if_they_have_no_price(name: str, tmp_path: Path) -> None:
    machine = load_hardware(name)
    assert machine.power is not None and machine.power.device_idle_w < machine.power.device_busy_w
    assert (machine.price is None) == any("no price" in line for line in machine.source)
    path = tmp_path / "p.toml"
    path.write_text(machine.to_toml())
    assert load_hardware(path) == machine


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ('currency = "EUR"', "either per_hour, or purchase"),
        ('currency = "EUR"\nper_hour = 1\npurchase = 1\nlifetime_hours = 1', "either per_hour, or purchase"),
        ('currency = "EUR"\npurchase = 1', "go together"),
        ('currency = "EUR"\nper_hour = 1\nelectricity_per_kwh = 1', "includes electricity"),
        ('currency = "euro"\nper_hour = 1', "currency"),
        ('currency = "EUR"\nper_hour = -1', "per_hour"),
        ('currency = "EUR"\nper_hour = nan', "per_hour"),
        ('currency = "EUR"\nper_hour = 1\ntax = 2', "tax"),
    ],
)
def test_prices_that_are_none(price: str, words: str, tmp_path: Path) -> None:
    machine = msgspec.structs.replace(load_hardware("t4"), price=None)
    path = tmp_path / "p.toml"
    path.write_text(f"{machine.to_toml()}\n[price]\n{price}\n")
    with pytest.raises(HardwareError, match=words) as error:
        load_hardware(path)
    assert "\n" not in str(error.value)

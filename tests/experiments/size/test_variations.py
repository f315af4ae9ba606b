"""Variations of a machine: what changes, what stays, and what is said of a change that is none."""

import msgspec
import pytest

from engine.hardware import load_hardware
from experiments.size.variations import variations
from tracekit.errors import HardwareError

MACHINE = load_hardware("rtx3060")


def test_one_by_one_and_all_together() -> None:
    link, memory, ram, every = variations(MACHINE, "link=2x,vram=24GiB, ram=8ch-ddr5")
    assert [one.name for one in (link, memory, ram)] == [
        "rtx3060 link=2x",
        "rtx3060 vram=24GiB",
        "rtx3060 ram=8ch-ddr5",
    ]
    assert every.name == "rtx3060 link=2x,vram=24GiB,ram=8ch-ddr5"
    assert link.link.host_to_device_bytes_per_s == 2 * MACHINE.link.host_to_device_bytes_per_s
    assert link.link.latency_ns == MACHINE.link.latency_ns and link.device == MACHINE.device
    assert memory.device.memory_bytes == 24 << 30 and memory.link == MACHINE.link
    assert ram.cpu is not None and MACHINE.cpu is not None
    assert ram.cpu.memory_bandwidth_bytes_per_s == 8 * 4800 * 8 * 10**6 * 7 // 10  # as the profile of an H100's host
    assert ram.cpu.compute_flops_per_s == MACHINE.cpu.compute_flops_per_s
    assert (every.link, every.device, every.cpu) == (link.link, memory.device, ram.cpu)


@pytest.mark.parametrize(
    ("change", "rate"), [("link=25GB/s", 25 * 10**9), ("link=0.5x", 6_300_000_000), ("link=1x", 12_600_000_000)]
)
def test_a_rate_is_given_or_multiplied(change: str, rate: int) -> None:
    (one,) = variations(MACHINE, change)
    assert one.link.host_to_device_bytes_per_s == rate


def test_the_rest() -> None:
    (fast,) = variations(MACHINE, "bandwidth=720GB/s")
    assert fast.device.memory_bandwidth_bytes_per_s == 720 * 10**9
    (ram,) = variations(MACHINE, "ram=2ch-ddr5-6000")
    assert ram.cpu is not None and ram.cpu.memory_bandwidth_bytes_per_s == 2 * 6000 * 8 * 10**6 * 7 // 10
    (engine,) = variations(MACHINE, "overhead=2x")
    assert engine.overhead.per_layer_ns == MACHINE.overhead.per_layer_ns // 2
    (more,) = variations(MACHINE, "vram=1.5x")
    assert more.device.memory_bytes == MACHINE.device.memory_bytes * 3 // 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "says nothing"),
        ("link", "write link=2x"),
        ("lnik=2x", "did you mean 'link'.*parts are link, vram"),
        ("link=fast", "how many times as fast, 2x, or a rate"),
        ("link=0x", "cannot be read"),
        ("link=100000x", "cannot be read"),
        ("vram=lots", "a size such as 24GiB"),
        ("vram=1B", "is no machine"),
        ("vram=0.001x,vram=2x", "vram"),
        ("ram=0ch-ddr5", "channels and their memory"),
        ("ram=8ch-ddr9", "8ch-ddr5"),
        ("link=1000x,bandwidth=1000x,overhead=1000x", None),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, message: str | None) -> None:
    if message is None:
        assert len(variations(MACHINE, text)) == 4
        return
    with pytest.raises(HardwareError, match=message) as error:
        variations(MACHINE, text)
    assert "\n" not in str(error.value)


def test_host_memory_needs_a_host_that_computes() -> None:
    with pytest.raises(HardwareError, match=r"no \[cpu\] table"):
        variations(msgspec.structs.replace(MACHINE, cpu=None), "ram=2x")

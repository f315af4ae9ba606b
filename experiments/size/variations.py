"""What if one part of a machine were another: `link=2x,vram=24GiB,ram=8ch-ddr5`."""

import re
from collections.abc import Callable
from fractions import Fraction

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.capacity import parse_memory
from engine.replay.sensitivities import DEVICE, HOST, LINK, OVERHEAD, improved
from tracekit.errors import HardwareError, TracekitError, did_you_mean

MEGATRANSFERS = {"ddr3": 1600, "ddr4": 3200, "ddr5": 4800}
"""Of a memory whose speed is not said, as in the shipped profiles; of DDR3 the usual one."""
READ_PERCENT = 70
"""Of a memory's raw rate a host is taken to read, as in the shipped profiles."""
_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")
_RATE = re.compile(r"(\d+(?:\.\d+)?)GB/s")
_CHANNELS = re.compile(r"(\d+)ch-(ddr[345])(?:-(\d+))?")


def variations(machine: HardwareProfile, text: str) -> list[HardwareProfile]:
    """The machine with each change by itself, and where there are several, with all of them.

    Each is named after the machine and its change. Raises HardwareError for what cannot be read.
    """
    changes = [change.strip() for change in text.split(",") if change.strip()]
    if not changes:
        raise HardwareError(f"--what-if {text!r} says nothing: give changes such as link=2x,vram=24GiB,ram=8ch-ddr5")
    sets = [[change] for change in changes] + ([changes] if len(changes) > 1 else [])
    return [_changed(machine, some) for some in sets]


def _changed(machine: HardwareProfile, changes: list[str]) -> HardwareProfile:
    found, seen = machine, set()
    for change in changes:
        part, equals, value = change.partition("=")
        if part not in PARTS:
            guess = did_you_mean(part, list(PARTS))
            raise HardwareError(
                f"--what-if {change!r} changes no part of a machine{guess}; parts are {', '.join(PARTS)}"
            )
        if not equals:
            raise HardwareError(f"--what-if {change!r} does not say what {part} is to be: write {part}=2x")
        if part in seen:
            raise HardwareError(
                f"--what-if {','.join(changes)}: {part} is there twice; give each once, or several --what-if"
            )
        seen.add(part)
        found = PARTS[part](found, value, change)
    name = f"{machine.name} {','.join(changes)}"
    try:
        return msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(found, name=name)), HardwareProfile)
    except msgspec.ValidationError as problem:
        raise HardwareError(f"--what-if {','.join(changes)} is no machine: {problem}") from None


def _link(machine: HardwareProfile, value: str, change: str) -> HardwareProfile:
    times = _times(value, change, machine.link.one_rate)
    # The setup of a copy is the driver's, and no faster on a faster link.
    link = msgspec.structs.replace(improved(machine, LINK, times).link, latency_ns=machine.link.latency_ns)
    return msgspec.structs.replace(machine, link=link)


def _vram(machine: HardwareProfile, value: str, change: str) -> HardwareProfile:
    if _TIMES.fullmatch(value):
        size = int(machine.device.memory_bytes * _times(value, change))
    else:
        try:
            size = parse_memory(value) or 0
        except TracekitError:
            raise _wrong(change, "a size such as 24GiB, or how many times as much, 2x") from None
    return msgspec.structs.replace(machine, device=msgspec.structs.replace(machine.device, memory_bytes=size))


def _bandwidth(machine: HardwareProfile, value: str, change: str) -> HardwareProfile:
    return improved(machine, DEVICE, _times(value, change, machine.device.memory_bandwidth_bytes_per_s))


def _ram(machine: HardwareProfile, value: str, change: str) -> HardwareProfile:
    if machine.cpu is None:
        raise HardwareError(
            f"--what-if {change}: {machine.name} has no [cpu] table, so host memory's rate changes nothing"
        )
    now = machine.cpu.memory_bandwidth_bytes_per_s
    if channels := _CHANNELS.fullmatch(value):
        count, kind, speed = channels.groups()
        raw = int(count) * int(speed or MEGATRANSFERS[kind]) * 8 * 10**6
        if not raw:
            raise _wrong(change, "channels and their memory, 8ch-ddr5")
        return improved(machine, HOST, Fraction(raw * READ_PERCENT, 100 * now))
    return improved(machine, HOST, _times(value, change, now, ", or channels and their memory, 8ch-ddr5"))


def _overhead(machine: HardwareProfile, value: str, change: str) -> HardwareProfile:
    return improved(machine, OVERHEAD, _times(value, change))


PARTS: dict[str, Callable[[HardwareProfile, str, str], HardwareProfile]] = {
    "link": _link,
    "vram": _vram,
    "bandwidth": _bandwidth,
    "ram": _ram,
    "overhead": _overhead,
}
"""What may change: the link's rate, the device's memory, its rate, the rate of host memory, the engine's fixed times
(2x is twice as fast)."""


def _times(value: str, change: str, now: int | None = None, more: str = "") -> Fraction:
    """`2x`, or where there is a rate `now`, what `25GB/s` is of it."""
    found = _TIMES.fullmatch(value)
    times = Fraction(found[1]) if found else Fraction(0)
    if now is not None and (rate := _RATE.fullmatch(value)):
        times = Fraction(rate[1]) * 10**9 / now
    if not Fraction(1, 1000) <= times <= 1000:
        raise _wrong(change, "how many times as fast, 2x" + ("" if now is None else ", or a rate, 25GB/s") + more)
    return times


def _wrong(change: str, what: str) -> HardwareError:
    return HardwareError(f"--what-if {change!r} cannot be read: give {what}")

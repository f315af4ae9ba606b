"""Sensitivities: how fast a plan would be if one thing of its machine were better; what would help most.

Decisions look at no clock, so one pass decides for every better machine. Decided again is where there are more slots,
and a plan whose misses are divided by the machine's speed where that comes out otherwise. Without prefetching, where
misses are copied, no better machine is slower (a property test). Else it may be: a faster link may begin a copy that
demand then waits for.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from engine.hardware import HardwareProfile, Rate
from engine.plan.capacity import Capacity
from engine.plan.plan import Plan
from engine.replay.memory import fits
from engine.replay.passes import Replayed, run
from engine.replay.result import Sensitivity
from engine.replay.setting import Setting
from tracekit.rows import DECODE
from tracekit.trace import Trace

TIMES = (Fraction(5, 4), Fraction(2))
LINK, DEVICE, HOST, OVERHEAD, MEMORY = "link", "device_bandwidth", "host_bandwidth", "overhead", "memory"
PARTS = (LINK, DEVICE, HOST, OVERHEAD, MEMORY)
PASSES = 1 + len(TIMES)
"""One for all machines, one for each number of slots."""


def find_sensitivities(
    trace: Trace,
    setting: Setting,
    progress: Callable[[int], object] | None = None,
    *,
    warm_up: int = 0,
    **how: Any,
) -> list[Sensitivity]:
    """The speed of decoding with each part of the machine better, in the order of `PARTS` and `TIMES`.

    Empty without decode steps, and for a plan that does not fit. The first `warm_up` steps do not count. `how` is
    handed to `engine.replay.passes.run`: steps, demands.
    """
    machine = setting.machine
    assert machine is not None
    if not fits(setting):
        return []
    better = [(part, times) for part in PARTS if part != MEMORY for times in TIMES]
    settings = [_on(setting, setting.plan, improved(machine, part, times)) for part, times in better]
    everyone = [setting, *settings]
    alike: dict[tuple[str, bytes], list[int]] = {}
    for place, one in enumerate(everyone):
        alike.setdefault(one.spec.meaning, []).append(place)
    passes: dict[int, Replayed] = {}
    for places in alike.values():
        targets = [everyone[place].target for place in places]
        told = progress if 0 in places else None  # others are more than was counted on
        decided = run(trace, everyone[places[0]].spec, targets, warm_up=warm_up, progress=told, **how)
        passes |= dict(zip(places, decided, strict=True))
    now, *found = (passes[place].counted(warm_up) for place in range(len(everyone)))
    before = _speed(now, setting)
    if before is None:
        return []
    speeds = {place: _speed(done, one) for place, done, one in zip(better, found, settings, strict=True)}
    for times in TIMES:
        larger = _on(setting, enlarged(setting.plan, times, setting.manifest.experts_per_layer), machine)
        (done,) = run(trace, larger.spec, [larger.target], warm_up=warm_up, progress=progress, **how)
        speeds[MEMORY, times] = _speed(done.counted(warm_up), larger)
    return [
        Sensitivity(part=part, times=float(times), tokens_per_second=speed, gain=speed / before - 1)
        for (part, times), speed in speeds.items()
        if speed is not None
    ]


def improved(machine: HardwareProfile, part: str, times: Fraction) -> HardwareProfile:
    """The machine with one part of it that many times better: rates are multiplied, fixed times divided."""

    def more(given: Any, *names: str) -> Any:
        return msgspec.structs.replace(given, **{name: int(getattr(given, name) * times) for name in names})

    def less(given: Any, *names: str) -> Any:
        return msgspec.structs.replace(given, **{name: int(getattr(given, name) / times) for name in names})

    engine = machine.engine
    if part == LINK:
        link = less(more(machine.link, "host_to_device_bytes_per_s"), "latency_ns")
        pageable = None if link.pageable_bytes_per_s is None else int(link.pageable_bytes_per_s * times)
        rates: list[Rate] = []
        for rate in link.rates:  # whole numbers: rounding must not make a larger copy the faster one
            rate = more(rate, "bytes_per_s")
            if rates:
                most = rate.bytes * rates[-1].bytes_per_s // rates[-1].bytes
                rate = msgspec.structs.replace(rate, bytes_per_s=min(rate.bytes_per_s, most))
            rates.append(rate)
        link = msgspec.structs.replace(link, rates=rates, pageable_bytes_per_s=pageable)
        return msgspec.structs.replace(machine, link=link)
    if part == DEVICE:
        fused = engine.fused and more(engine.fused, "memory_bandwidth_bytes_per_s")
        expansions = [more(one, "weights_per_s") for one in engine.expansions]
        engine = msgspec.structs.replace(engine, fused=fused, expansions=expansions)
        return msgspec.structs.replace(
            machine, device=more(machine.device, "memory_bandwidth_bytes_per_s"), engine=engine
        )
    if part == HOST:
        return msgspec.structs.replace(machine, cpu=machine.cpu and more(machine.cpu, "memory_bandwidth_bytes_per_s"))
    assert part == OVERHEAD
    fixed = less(engine.overhead, *(field.name for field in msgspec.structs.fields(engine.overhead)))
    engine = msgspec.structs.replace(
        engine,
        overhead=fixed,
        fused=engine.fused and less(engine.fused, "per_call_ns", "per_expert_ns"),
        expansions=[less(one, "per_expert_ns") for one in engine.expansions],
    )
    return msgspec.structs.replace(machine, engine=engine)


def enlarged(plan: Plan, times: Fraction, experts_per_layer: Sequence[int]) -> Plan:
    """The plan with that many times the slots or bytes: whole ones, and slots for no more than all experts."""
    low = plan.precision
    if low is not None:
        more = Capacity.parse(low.capacity).times(times, experts_per_layer)
        low = msgspec.structs.replace(low, capacity=more)
    return plan.replace(
        cache=msgspec.structs.replace(plan.cache, capacity=plan.capacity.times(times, experts_per_layer)),
        precision=low,
    )


def _on(setting: Setting, plan: Plan, machine: HardwareProfile) -> Setting:
    return Setting.of(
        setting.manifest,
        plan,
        machine,
        setting.shape,
        stored=setting.stored,
        reshape=setting.reshape,
        load=setting.load,
    )


def _speed(done: Replayed, setting: Setting) -> float | None:
    """Decode tokens per second; None without decode steps."""
    seconds = float(done.step_ns[done.phase == DECODE].sum()) * setting.scale / 1e9
    return float(done.tokens[DECODE]) / seconds if seconds else None

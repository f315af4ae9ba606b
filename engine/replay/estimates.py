"""Estimates beside a replay's time: memory, energy, cost of a token. Each names what it was made from."""

from engine.replay.memory import device_memory, fits, host_bytes
from engine.replay.passes import Replayed
from engine.replay.result import Estimates
from engine.replay.setting import Setting
from engine.simulator.timeline import CAUSES, STALLS
from tracekit.rows import DECODE

JOULES_PER_KWH = 3.6e6
OVERHEAD = CAUSES.index("overhead")


def find_estimates(setting: Setting, done: Replayed) -> Estimates:
    """Memory of a plan on its machine; with the profile's `power` and `price`, energy and cost of a generated token.

    Energy: each part draws its idle power over the whole replay, and its busy power instead while it works. Prefill is
    part of what a generated token takes. Without decode steps, or if the plan does not fit, no figures are per token.
    """
    costs, machine, memory = setting.costs, setting.machine, device_memory(setting)
    assert costs is not None and machine is not None and done.timeline is not None
    seconds = float(done.step_ns.sum()) * costs.scale / 1e9
    spent = done.timeline.spent.sum(axis=0) * costs.scale / 1e9
    computing = float(spent[:STALLS].sum() - spent[OVERHEAD])
    hosting = float(spent[OVERHEAD]) + done.timeline.cpu_busy_ns * costs.scale / 1e9
    copying = done.timeline.link_busy_ns * costs.scale / 1e9
    tokens = int(done.tokens[DECODE]) if fits(setting) else 0
    inputs = []
    joules = cost = None
    if machine.power is not None:
        power = machine.power
        joules = (power.device_idle_w + power.host_idle_w) * seconds
        joules += (power.device_busy_w - power.device_idle_w) * computing
        joules += (power.host_busy_w - power.host_idle_w) * min(hosting, seconds) + power.link_busy_w * copying
        inputs.append(f"{machine.name}: power, over {computing:.3f} s of computing, {copying:.3f} s of copying")
    if machine.price is not None and (machine.power is not None or not machine.price.electricity_per_kwh):
        cost = machine.price.of(seconds / 3600, (joules or 0.0) / JOULES_PER_KWH)
        inputs.append(f"{machine.name}: price, over {seconds:.3f} s")
    return Estimates(
        device_bytes=memory.total,
        device_parts=memory._asdict(),
        host_bytes=round(host_bytes(setting)),
        joules_per_token=joules / tokens if joules is not None and tokens else None,
        cost_per_million_tokens=1e6 * cost / tokens if cost is not None and tokens else None,
        currency=machine.price.currency if cost is not None and machine.price is not None else None,
        inputs=inputs,
    )

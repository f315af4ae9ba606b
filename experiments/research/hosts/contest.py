"""The plans and the machines: every place of a miss with every admission, on machines that differ by their hosts alone.

Where a miss goes depends on the machine if it is "split" or "auto", so these decide anew on each. A request's time is
that of all its steps, prompt included.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.decisions.misses import asks_machine
from engine.hardware import HardwareProfile, load_hardware
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.shapes import load_shape
from experiments.research.domains import Found, cost, keep, kept, told
from experiments.research.placement import one_token_a_step, routed
from tracekit.errors import TraceError
from tracekit.trace import Trace

SLOTS: Mapping[str, Sequence[int]] = {"mixtral-mini": (2, 3, 4, 6), "qwen3-moe-mini": (4, 8, 12, 16)}
MACHINE, ENGINE, WEIGHTS = "rtx4090", "graph-fused", "hqq-4bit"
HOSTS: Mapping[str, float] = {"slow": 4.0, "even": 1.0, "fast": 0.25}
"""How long the host computes a missing expert for one token, in copies of it."""
SHARED = "even, memory shared"
BESIDE = 50
"""There: by how many per cent a copy and an expert on the host lengthen each other."""
WHERES = ("copy", "host", "split", "auto")
ADMISSIONS: Mapping[str, str | dict[str, object]] = {
    "all": "always",
    **{f"{count} a step": {"per_step": count} for count in (1, 2, 4, 8)},
    "8 a step, even": {"per_step": 8, "per_layer": "even"},
    "16 a step, even": {"per_step": 16, "per_layer": "even"},
    "second miss": "second-miss",
    "score": "score",
}
"""The reference models have eight MoE layers: eight a step, even, are one of each layer."""
BASE = "copy, all"


def steps(model: str, folder: Path) -> Trace:
    """The trace that requests are served from, a token a step behind each prompt, with the gates' weights."""
    path = folder / f"{model}.trace"
    trace = Trace.open(path) if path.exists() else one_token_a_step(routed(model, folder), path)
    if not trace.has_weights:
        raise TraceError(f"{path} holds no gate weights, which admission by score reads: give another folder")
    return trace


def modelled(shape: str, weights: str = WEIGHTS) -> dict[str, HardwareProfile]:
    """The machines by name; on the last one the host's memory is shared."""
    found = {name: with_host(shape, ratio, weights) for name, ratio in HOSTS.items()}
    return found | {SHARED: sharing(found["even"])}


def with_host(shape: str, ratio: float, weights: str = WEIGHTS) -> HardwareProfile:
    """The shipped machine, its [cpu] scaled so that an expert of `shape` takes `ratio` copies for one token."""
    machine, model = load_hardware(MACHINE, ENGINE), load_shape(shape)
    cpu, size = machine.cpu, model.expert_bytes(WeightFormat.parse(weights))
    assert cpu is not None
    longer = ratio * machine.copy_ns(size) / cpu.expert(size, model.expert_params).ns(1)
    scaled = msgspec.structs.replace(
        cpu,
        memory_bandwidth_bytes_per_s=round(cpu.memory_bandwidth_bytes_per_s / longer),
        compute_flops_per_s=round(cpu.compute_flops_per_s / longer),
        per_expert_ns=round(cpu.per_expert_ns * longer),
        transfer_ns=round(cpu.transfer_ns * longer),
    )
    return msgspec.structs.replace(machine, cpu=scaled)


def sharing(machine: HardwareProfile) -> HardwareProfile:
    """The machine, but that copies and experts on the host lengthen each other."""
    assert machine.cpu is not None
    cpu = msgspec.structs.replace(machine.cpu, slowdown_percent=BESIDE, link_slowdown_percent=BESIDE)
    return msgspec.structs.replace(machine, cpu=cpu)


def plans(slots: int) -> dict[str, Plan]:
    """Every plan of the contest by name, all of the same slots."""
    return {
        f"{where}, {name}": Plan(f"{slots}/layer", weights=WEIGHTS, miss=where, admission=admission)
        for where in WHERES
        for name, admission in ADMISSIONS.items()
    }


def contest(
    trace: Trace, wanted: Mapping[str, Plan], machines: Mapping[str, HardwareProfile], shape: str, path: Path
) -> dict[str, Found]:
    """What each request costs under each plan; from `path`.npz where it is kept already."""
    path = path.with_suffix(".npz")
    if not path.exists():
        found = {}
        for name, plan in wanted.items():
            told(f"{path.stem}: {name}")
            found[name] = on_all(trace, plan, list(machines.values()), shape)
        keep(found, path)
    return kept(path)


def on_all(trace: Trace, plan: Plan, machines: Sequence[HardwareProfile], shape: str) -> Found:
    """What each request costs on each machine. Of a plan that decides otherwise on each, all but times are those of the
    first."""
    if not asks_machine(plan.miss):
        return cost(trace, plan, shape, machines)
    each = [cost(trace, plan, shape, [machine]) for machine in machines]
    return each[0]._replace(ns=np.concatenate([one.ns for one in each]))


def time_on(machine: int) -> Callable[[Found], np.ndarray]:
    """What each request takes on one of the machines."""
    return lambda one: one.ns[machine]


def hit_ratio(one: Found) -> float:
    """Of decode."""
    return float(1 - one.misses.sum() / one.lookups.sum())

"""What a machine says about misses, before the first visit: how many are copied, whose tokens are few enough.

Decisions look at no clock. So what depends on a machine's speed is made of its profile once, and is part of what
decides (`CacheSpec`): engine and simulator decide alike where they are given the same profile.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.hardware import HardwareProfile
from engine.hardware.roofline import Roofline
from engine.plan.misses import MissPlan
from engine.plan.weights import expanded_bits
from policies.misses import PARTS
from tracekit.errors import PlanError

MOST_TOKENS = 1 << 16
"""Of an expert at a visit, up to which it is found out whether the host is sooner."""


class Served(NamedTuple):
    """`copied`: of "split", the share of a visit's misses that are copied, in PARTS; `most_tokens`: of "auto", by
    layer, up to how many tokens of an expert it is the host's. Both empty where the plan asks for neither."""

    copied: int | None = None
    most_tokens: tuple[int, ...] = ()


NO_MACHINE = Served()


def served(
    miss: MissPlan,
    machine: HardwareProfile | None,
    expert_bytes: Sequence[int],
    expert_params: Sequence[int],
    weights: str | None,
    *,
    grouped: bool,
) -> Served:
    """What a plan's words for misses mean on `machine` for experts of these bytes and parameters, by layer.

    `weights` is the format that they are stored in; `grouped`, whether kernels compute several of them at once. Raises
    PlanError where the plan asks for what no profile says.
    """
    if miss.where == "split" and miss.share is not None:
        return Served(copied=round(miss.share * PARTS))
    if not asks_machine(miss):
        return Served()
    machine = measured_host(miss, machine)
    if not expert_bytes:
        raise PlanError(
            f'miss.where = "{miss.where}" weighs copying an expert against computing it on the host, but nothing says '
            "how large experts are: give a model shape (--model-shape)"
        )
    machine = machine.sustained()
    bits, meta = expanded_bits(weights, grouped=grouped)
    kernel, cpu = machine.expert_kernel(fused=grouped), machine.cpu
    assert cpu is not None
    sizes = list(zip(expert_bytes, expert_params, strict=True))
    if miss.where == "auto":
        known: dict[tuple[int, int], int] = {}
        for one in sizes:
            if one not in known:
                device = machine.expert(*one, bits, kernel, meta=meta)
                known[one] = sooner_up_to(cpu.expert(*one), device, machine.copy_ns(one[0]))
        return Served(most_tokens=tuple(known[one] for one in sizes))
    # While both run, each takes as much longer as the profile says.
    host = sum(cpu.expert(*one).ns(1) * (100 + cpu.slowdown_percent) // 100 for one in sizes)
    wire = sum(machine.wire_ns(size) * (100 + cpu.link_slowdown_percent) // 100 for size in expert_bytes)
    copy = wire + machine.link.latency_ns * len(sizes)
    return Served(copied=(2 * PARTS * host + host + copy) // (2 * (host + copy)) if host + copy else PARTS)


def asks_machine(miss: MissPlan) -> bool:
    """Whether what the plan decides depends on a machine's profile."""
    return miss.where == "auto" or (miss.where == "split" and miss.share is None)


def check_profile(miss: MissPlan, machine: HardwareProfile | None) -> None:
    """Raise PlanError where the plan asks for what no profile says."""
    if asks_machine(miss):
        measured_host(miss, machine)


def measured_host(miss: MissPlan, machine: HardwareProfile | None) -> HardwareProfile:
    """The profile, if it says how fast the host computes. Raises PlanError."""
    if machine is not None and machine.cpu is not None:
        return machine
    lack = "no hardware profile is given" if machine is None else f"profile {machine.name!r} has no [cpu] table"
    also = ", or say miss.share" if miss.where == "split" and miss.share is None else ""
    raise PlanError(
        f'miss.where = "{miss.where}" needs to know how fast the host computes, but {lack}: '
        f"give --hardware with a profile that has one, such as tracekit calibrate makes{also}"
    )


def sooner_up_to(host: Roofline, device: Roofline, copy_ns: int) -> int:
    """Up to how many tokens the host has an expert computed strictly sooner than it is copied and computed there.

    0 if not even one; MOST_TOKENS if always. Where more tokens win again, that does not count.
    """
    tokens = np.arange(1, MOST_TOKENS + 1, dtype=np.int64)

    def ns(unit: Roofline) -> np.ndarray:
        return np.maximum(unit.read_ns, tokens * min(unit.token_ps, 1 << 40) // 1000) + unit.expand_ns + unit.fixed_ns

    later = ns(host) >= copy_ns + ns(device)
    return int(later.argmax()) if later.any() else MOST_TOKENS

"""Capacity `auto` in a study: the slots that a machine leaves, found before anything is replayed.

One capacity for all traces of a setting, so that a plan is the same plan on each: the load is the largest that any of
them has, where the study's `serve` does not say. What follows from it (keys, names, winners' files) has the number.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.capacity import Capacity
from engine.plan.plan import Plan
from engine.replay.memory import fit_capacity, load_of
from engine.replay.passes import Steps
from engine.shapes import ModelShape
from engine.shapes.load import Load
from tracekit.errors import CapacityError, PlanError
from tracekit.manifest import Manifest
from tracekit.trace import Trace

AUTO = "auto"


class Routing(Protocol):
    """Whatever opens a trace as it is to be replayed (`experiments.study.cells.Routing`)."""

    def open(self) -> Trace: ...


class Fitting:
    """What `auto` means on each machine, for the traces of a study; `routings` by batch size."""

    def __init__(
        self, routings: Mapping[int | None, Sequence[Routing]], max_device_bytes: int | None, reshape: str | None
    ) -> None:
        self._routings, self._limit, self._reshape = routings, max_device_bytes, reshape
        self._opened: dict[int | None, list[tuple[Manifest, Steps]]] = {}

    def plan(self, plan: Plan, batch: int | None, machine: HardwareProfile, shape: ModelShape | None) -> Plan:
        """`plan` with so many slots per layer as fit on every trace; CapacityError where not one does.

        What a trace has against plan or shape is for its own cells to say: then the others are asked.
        """
        known = self._of(batch)
        if not known:
            return plan
        loads = [load_of(plan, steps) for _, steps in known]
        load = Load(*(max(parts) for parts in zip(*loads, strict=True)))
        found = []
        for manifest, _ in known:
            try:
                fitted = fit_capacity(plan, manifest, self._limited(machine), shape, load, reshape=self._reshape)
            except CapacityError:
                raise
            except PlanError:
                continue
            found.append(fitted)
        return min(found, key=_slots, default=plan)

    def _limited(self, machine: HardwareProfile) -> HardwareProfile:
        """The machine with no more memory than the study lets plans take."""
        if self._limit is None or self._limit >= machine.device.memory_bytes:
            return machine
        device = msgspec.structs.replace(machine.device, memory_bytes=self._limit)
        return msgspec.structs.replace(machine, device=device)

    def _of(self, batch: int | None) -> list[tuple[Manifest, Steps]]:
        if batch not in self._opened:
            traces = [routing.open() for routing in self._routings[batch]]
            self._opened[batch] = [(trace.manifest, Steps.of(trace)) for trace in traces if trace.tokens]
        return self._opened[batch]


def _slots(plan: Plan) -> int:
    return int(plan.capacity.amount)


def is_auto(plan: Plan) -> bool:
    """Whether the machine says how large the cache is."""
    return plan.capacity.unit == AUTO


def became(asked: Sequence[tuple[str, str]]) -> str:
    """What `auto` became, in a sentence: from (how weights are stored, capacity) of each plan; nothing of none."""
    found: dict[str, list[int]] = {}
    for stored, capacity in asked:
        found.setdefault(stored, []).append(int(Capacity.parse(capacity).amount))
    told = []
    for stored, slots in found.items():
        low, high = min(slots), max(slots)
        told.append(f"{low}/layer{stored}" if low == high else f"{low} to {high}/layer{stored}")
    return f"capacity auto became {'; '.join(told)}" if told else ""

"""What a model would be on a machine, before anything of it is fetched or recorded: whether it fits, and how fast.

No routing is known here, so speed is a few figures: nothing missing, everything missing, and hits as even routing gives
them, as many as the share of experts that is resident. Real routing repeats itself, so a cache does better than that.
Where the host's processor computes experts beside the device, more is possible than with nothing missing: how much at
most is a bound (engine.replay.speed_bounds).
"""

from typing import NamedTuple

import numpy as np

from engine.hardware import HardwareProfile
from engine.plan.misses import MissPlan
from engine.plan.plan import Plan
from engine.replay.counts import Cell, counts_manifest, time_cell, totals_of
from engine.replay.memory import DeviceMemory, device_memory, fit_capacity
from engine.replay.setting import Setting, costs_without_predictors
from engine.replay.speed_bounds import Fewest, least_times
from engine.replay.spread import decisions, spread
from engine.shapes import ModelShape
from engine.shapes.load import Load
from engine.simulator.least_work import LeastWorks
from tracekit.errors import CapacityError

STEPS = 20
"""Decode steps that are timed: costs do not change from one to the next."""
CHUNK = 512
"""Tokens of a prompt read at a time, as llama.cpp's default is."""


class Prospect(NamedTuple):
    """A model on a machine. Speeds are tokens per second of all sequences; 0 slots where it does not fit."""

    machine: str
    engine: str
    """The software whose time is counted."""
    slots: int
    """Experts of each layer that find room on the device."""
    experts: int
    memory: DeviceMemory
    room: int
    """Bytes of the device."""
    resident: float
    """Nothing is missing: the most that this device computes by itself."""
    even: float
    """Hits as even routing gives them."""
    missing: float
    """Every expert is copied: the least."""
    helped: float | None
    """No plan is faster whose experts the host's processor computes, too; None without one in the profile."""

    @property
    def fits(self) -> bool:
        return self.slots > 0

    @property
    def most(self) -> float:
        """What no plan exceeds under this engine."""
        return max(self.resident, self.helped or 0.0)


def prospect(shape: ModelShape, machine: HardwareProfile, plan: Plan) -> Prospect:
    """`plan`'s formats, context and batch, with as many slots as fit. The plan's capacity must be `auto`."""
    context, batch = plan.serve.context or 1, plan.serve.batch or 1
    load = Load(context, batch, min(context, CHUNK) * batch, context)
    manifest = counts_manifest(shape)
    costs = costs_without_predictors(manifest, plan, machine, shape)
    try:
        fitted = fit_capacity(plan, manifest, machine, shape, load)
        slots = int(fitted.cache.capacity.removesuffix("/layer"))
    except CapacityError:
        slots = 0
    least = plan.replace(cache=plan.cache.__class__(capacity=f"{max(slots, 1)}/layer"))
    distinct = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** batch)
    lookups = round(STEPS * len(shape.moe_layers) * distinct)

    def cell(misses: float) -> Cell:
        return Cell(steps=STEPS, tokens=batch, distinct=distinct, demand_loads=round(misses * lookups), context=context)

    def speed(misses: float) -> float:
        return time_cell(cell(misses), shape, costs).tokens_per_second

    return Prospect(
        machine=machine.name,
        engine=machine.engine.name,
        slots=slots,
        experts=shape.experts,
        memory=device_memory(Setting.of(manifest, least, None, shape, load=load)),
        room=machine.device.memory_bytes,
        resident=speed(0),
        even=speed(1 - min(slots, shape.experts) / shape.experts),
        missing=speed(1),
        helped=None if machine.cpu is None else _helped(cell(0), shape, machine, plan),
    )


def _helped(cell: Cell, shape: ModelShape, machine: HardwareProfile, plan: Plan) -> float:
    """The bound on tokens per second where device and host share the experts, and nothing need be copied."""
    planned = plan.replace(miss=MissPlan(where="auto"))
    costs, totals = costs_without_predictors(counts_manifest(shape), planned, machine, shape), totals_of(cell, shape)
    demand, _ = decisions(totals, spread(totals, "even", 0), 0, totals.steps)
    works = LeastWorks([costs])
    works.add(demand, (demand.step_tokens * cell.context).astype(np.int64))
    nothing = Fewest(np.zeros(totals.layers, np.int64), 0, together=False)
    return 1e9 * totals.tokens / least_times(nothing, costs, works.found[0]).compute

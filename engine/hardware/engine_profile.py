"""EngineProfile: what the software takes of a machine's time, apart from the machine.

A machine's bandwidths are physics; how long a layer's launches take, and whether weights are expanded before use, is
the engine that runs on it. What one engine takes is no bound of the machine.
"""

import os
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from engine.hardware.quantities import BytesPerSecond, FlopsPerSecond, Name, Nanoseconds
from engine.hardware.roofline import ceil_ns
from tracekit import named_toml
from tracekit.errors import HardwareError

DEFAULT = "transformers-eager"
"""The engine of a machine whose profile carries none, where nobody asks for another.

It is what this project's own runtime is built on, and what all times assumed before engines had a name."""
CALIBRATED = "calibrated"
"""The word for the engine that a machine's profile carries itself."""


class Overhead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Time that is neither copy nor arithmetic."""

    per_layer_ns: Nanoseconds
    """Fixed cost of running one transformer layer (kernel launches, framework)."""
    per_step_ns: Nanoseconds
    """Fixed cost of a forward pass (embedding lookup, sampling, Python around it)."""
    gate_readback_ns: Nanoseconds
    """Time from the end of a gate until the host knows which experts it chose."""
    per_copy_ns: Nanoseconds = 0
    """Host time to ask for one copy and take note of it, during which nothing is computed."""
    per_expert_ns: Nanoseconds = 0
    """Fixed cost of running one expert at one visit (kernel launches), where it is not in per_layer_ns."""
    per_prediction_ns: Nanoseconds = 120_000
    """Fixed cost of asking a fitted predictor at one visit: Python and a few small array operations on the host."""
    per_lookahead_ns: Nanoseconds = 0
    """Cost of asking the gate of a later layer at one visit, and of ranking what it says (prefetching by `gate`)."""
    per_lookup_ns: Nanoseconds = 0
    """Host time to look one demanded expert up in the cache, before anything of a visit is asked for."""
    per_insert_ns: Nanoseconds = 0
    """Host time to find room for one expert in the cache (victim, tables, slots), likewise; prefetches included."""


class Expanded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What expanding an expert of one size was found to take."""

    weights: Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
    """Of the expert."""
    ns: Annotated[int, msgspec.Meta(ge=1, le=10_000_000_000)]


class Expansion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What expanding quantised experts into the type of the arithmetic takes: a kernel is no mere read of memory."""

    bits: Literal[2, 3, 4, 8]
    """Of the stored codes."""
    weights_per_s: BytesPerSecond
    """Weights that are expanded per second."""
    per_expert_ns: Nanoseconds = 0
    """Fixed time of expanding one expert (kernel launches)."""
    meta: bool = False
    """Whether scales and zeros are stored in codes of their own, which takes kernels of their own."""
    points: list[Expanded] = []
    """Measured times, sizes ascending: between two of them time is linear in size. Below the first its time holds,
    since launches do not shrink; above the last its rate. Without points a fixed time and a rate hold for all sizes."""

    def __post_init__(self) -> None:
        for small, large in pairwise(self.points):
            if small.weights >= large.weights or small.ns > large.ns:
                raise ValueError(f"engine.expansions: sizes and times must ascend, but {large} follows {small}")

    def ns(self, weights: int) -> int:
        """Nanoseconds of expanding an expert of so many weights, rounded up."""
        if not self.points:
            return self.per_expert_ns + ceil_ns(weights, self.weights_per_s)
        first, last = self.points[0], self.points[-1]
        if weights <= first.weights:
            return first.ns
        for small, large in pairwise(self.points):
            if weights <= large.weights:
                wide = large.weights - small.weights
                return small.ns - (-(large.ns - small.ns) * (weights - small.weights) // wide)
        return -(-last.ns * weights // last.weights)


class ExpertKernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kernel that computes experts. As `fused`: several experts of a visit in one call (`compute.kernels =
    "grouped"`, or `compute.experts = "fused"` for all of them). It reads quantised experts as they are stored.

    A call takes `per_call_ns`, and for each of its experts `per_expert_ns` and the longer of reading its weights and
    its tokens' arithmetic, at the rates that this kernel reaches.
    """

    memory_bandwidth_bytes_per_s: BytesPerSecond
    """Rate at which it reads experts' weights."""
    compute_flops_per_s: FlopsPerSecond
    """Its matrix rate; a multiply-add is two operations."""
    per_call_ns: Nanoseconds
    """Fixed cost of a call (kernel launches, sorting tokens by expert)."""
    per_expert_ns: Nanoseconds = 0
    """Fixed cost of each expert in it."""


class OnMachines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Machines on which an engine's overheads are others: launching is work of the host, and hosts differ."""

    machines: list[str]
    """Names of profiles."""
    overhead: Overhead


class EngineProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An engine. Read one with `load_engine`; a machine's profile may carry its own as the table `engine`."""

    name: Name
    description: str = ""
    source: list[str] = []
    """Where the numbers come from, one entry per claim."""
    overhead: Overhead
    on: list[OnMachines] = []
    """Machines with overheads of their own."""
    quantised: Literal["expanded", "as-stored"] = "expanded"
    """How quantised experts are computed: expanded to 16 bits by a kernel of its own first, as HQQ does, or by kernels
    that read them as they are stored."""
    expansions: list[Expansion] = []
    """Measured expansion by bits and kind of scales; where there is none of a format's, the nearest counts. Empty: it
    is taken to read and write memory at the device's bandwidth."""
    disk_reads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """How many experts it reads from disk at a time, as far as the disk has lanes (`disk.lanes`)."""
    fused: ExpertKernel | None = None
    """Without it a fused call reaches the device's rates and takes what launching one expert takes."""

    def __post_init__(self) -> None:
        kinds = [(one.bits, one.meta) for one in self.expansions]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"engine.expansions: more than one for {max(kinds, key=kinds.count)[0]} bits")
        named = [machine for one in self.on for machine in one.machines]
        if len(set(named)) < len(named):
            raise ValueError(f"engine.on: more than one for {max(named, key=named.count)}")

    def on_machine(self, name: str) -> "EngineProfile":
        """The engine as it is on the machine of that name."""
        own = next((one.overhead for one in self.on if name in one.machines), self.overhead)
        return msgspec.structs.replace(self, overhead=own, on=[])


NOTHING = Overhead(per_layer_ns=0, per_step_ns=0, gate_readback_ns=0, per_prediction_ns=0)
"""An engine that takes no time."""


def engine_names() -> tuple[str, ...]:
    """Names of the shipped engine profiles, sorted."""
    return named_toml.names("engine.hardware", "engines")


def load_engine(name_or_path: str | os.PathLike[str]) -> EngineProfile:
    """A shipped engine profile by name, or a user's TOML file by path. Anything else is a one-line HardwareError."""
    return named_toml.load(
        name_or_path,
        EngineProfile,
        what="engine profile",
        package="engine.hardware",
        folder="engines",
        error=HardwareError,
    )

"""HardwareProfile: a machine as the simulator sees it, with the engine that runs on it, and the times that follow.

All quantities are integers in the unit their name ends with. `copy_ns` is the latency-plus-bandwidth model of
a transfer, `compute_ns` the roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)).
"""

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine.hardware.economy import Power, Price
from engine.hardware.engine_profile import (
    CALIBRATED,
    DEFAULT,
    NOTHING,
    EngineProfile,
    ExpertKernel,
    Overhead,
    engine_names,
    load_engine,
)
from engine.hardware.host import Host, Lanes, check_lanes, total_rate
from engine.hardware.prices import shipped_tables
from engine.hardware.quantities import BytesPerSecond, FlopsPerSecond, MemoryBytes, Name, Nanoseconds
from engine.hardware.roofline import SECOND, Amount, Roofline, ceil_ns, token_ps
from tracekit import named_toml
from tracekit.errors import HardwareError
from tracekit.html_table import html_table

if TYPE_CHECKING:
    import numpy as np

SMALLEST_CHUNK = 1 << 18
OWN = "own"
"""The name of an engine whose costs stand among those of a machine that was not measured."""


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The accelerator itself."""

    memory_bytes: MemoryBytes
    """Memory of the device."""
    memory_bandwidth_bytes_per_s: BytesPerSecond
    """Rate at which the device reads its own memory."""
    compute_flops_per_s: FlopsPerSecond
    """Dense fp16 or bf16 matrix rate with fp32 accumulation; a multiply-add is two operations."""
    sustained_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100
    """Both rates in lasting work as a share of these, where heat or power limits bring clocks down; 100: they last."""


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the link was found to do at one size of copy."""

    bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
    """Size of the copy."""
    bytes_per_s: BytesPerSecond
    """Its rate, latency apart."""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The way from host memory to the device."""

    host_to_device_bytes_per_s: BytesPerSecond
    """Effective rate of one large copy from pinned host memory."""
    latency_ns: Nanoseconds
    """Fixed time of a copy, whatever its size: its setup, before bytes move."""
    copy_engines: Annotated[int, msgspec.Meta(ge=1, le=2)]
    """Host-to-device copies that may be in flight together: a second one is set up while the first one's bytes move.
    The link's rate is the same."""
    rates: list[Rate] = []
    """Rates by size of copy from pinned host memory, sizes ascending; empty: one rate for all. Between two sizes time
    is linear in size; below the first and above the last, their rates hold."""
    host_memory: Literal["pinned", "pageable"] = "pinned"
    """What experts lie in."""
    pageable_bytes_per_s: BytesPerSecond | None = None
    """Effective rate of copies from pageable host memory, of any size; required if that is where experts lie."""
    chunk_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    """Prefetches are copied in chunks of this size, between which demand loads may go first; 0: in one piece.
    Each chunk takes the latency."""

    @property
    def rate_field(self) -> str:
        """The field that says how fast copies are."""
        if self.host_memory == "pageable":
            return "link.pageable_bytes_per_s"
        return "link.rates" if self.rates else "link.host_to_device_bytes_per_s"

    @property
    def piecewise(self) -> bool:
        """Whether the rate depends on the size of the copy."""
        return bool(self.rates) and self.host_memory == "pinned"

    @property
    def one_rate(self) -> int:
        """The rate of copies where it does not, in bytes per second."""
        if self.host_memory == "pageable":
            assert self.pageable_bytes_per_s is not None
            return self.pageable_bytes_per_s
        return self.host_to_device_bytes_per_s

    def __post_init__(self) -> None:
        if self.host_memory == "pageable" and self.pageable_bytes_per_s is None:
            raise ValueError('link.host_memory = "pageable" needs link.pageable_bytes_per_s')
        if 0 < self.chunk_bytes < SMALLEST_CHUNK:
            raise ValueError(f"link.chunk_bytes = {self.chunk_bytes}: give at least {SMALLEST_CHUNK}, or 0 for none")
        for small, large in zip(self.rates, self.rates[1:], strict=False):
            if small.bytes >= large.bytes:
                raise ValueError(f"link.rates: sizes must ascend, but {large.bytes} follows {small.bytes}")
            if small.bytes * large.bytes_per_s > large.bytes * small.bytes_per_s:
                raise ValueError(
                    f"link.rates: a copy of {large.bytes} bytes would take less time than one of {small.bytes}"
                )


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where experts lie that host memory cannot hold. Without this table host memory holds them all."""

    read_bytes_per_s: BytesPerSecond
    """Effective rate of reading one expert into host memory."""
    latency_ns: Nanoseconds
    """Fixed time of a read."""
    host_cache_bytes: MemoryBytes
    """Host memory for experts: the most recently used stay, and at the beginning it is empty, as with mapped files."""
    link_slowdown_percent: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    """How much longer a copy's bytes take that begins during a read: both need the host's memory."""
    lanes: list[Lanes] = []
    """Rates of several reads together, numbers ascending; the last says how many there may be. Empty: one at a time."""

    def __post_init__(self) -> None:
        check_lanes(self.lanes)

    @property
    def most_reads(self) -> int:
        """How many reads may be under way together."""
        return self.lanes[-1].reads if self.lanes else 1

    def read_ns(self, size_bytes: int, reads: int = 1) -> int:
        """Nanoseconds of reading so many bytes as one of so many reads: latency + size / its part of the rate, rounded
        up."""
        return self.latency_ns + ceil_ns(size_bytes * reads, total_rate(self.lanes, self.read_bytes_per_s, reads))


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The host's processor, for plans whose misses it computes (`miss.where`; Fiddler: Kamahori et al. 2024, arXiv
    2402.07033)."""

    memory_bandwidth_bytes_per_s: BytesPerSecond
    """Rate at which it reads weights from host memory, all cores together."""
    compute_flops_per_s: FlopsPerSecond
    """Matrix rate on weights as they are stored; a multiply-add is two operations."""
    per_expert_ns: Nanoseconds
    """Fixed cost of running one expert at one visit."""
    transfer_ns: Nanoseconds
    """Activations from the device and the result back, for one expert at one visit."""
    slowdown_percent: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    """How much longer an expert takes that begins during a copy: both need the host's memory."""
    link_slowdown_percent: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    """How much longer a copy's bytes take that begins while it computes."""

    def expert(self, stored_bytes: int, params: int) -> Roofline:
        """An expert of so many bytes and parameters, computed where it lies, as it is stored."""
        read = ceil_ns(stored_bytes, self.memory_bandwidth_bytes_per_s)
        return Roofline(read, token_ps(params, self.compute_flops_per_s), 0, self.per_expert_ns + self.transfer_ns)


class HardwareProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine, and the engine that runs on it. Read one with `load_hardware`, which finds the engine where the
    profile carries none; values are checked against physical limits when read."""

    name: Name
    description: str
    calibrated: bool
    """True when measured on a machine; False when written from data sheets and stated assumptions."""
    source: list[str]
    """Where the numbers come from, one entry per claim."""
    device: Device
    link: Link
    engine: EngineProfile
    """What the software takes. A file may leave it out: then another file says it (engine.hardware.engine_profile)."""
    disk: Disk | None = None
    host: Host | None = None
    cpu: Cpu | None = None
    power: Power | None = None
    price: Price | None = None

    @property
    def overhead(self) -> Overhead:
        """The engine's."""
        return self.engine.overhead

    @property
    def fused(self) -> ExpertKernel | None:
        """The engine's."""
        return self.engine.fused

    def with_engine(self, engine: EngineProfile) -> "HardwareProfile":
        """The same machine under another engine."""
        return msgspec.structs.replace(self, engine=engine.on_machine(self.name))

    def without_engine(self) -> "HardwareProfile":
        """The machine under an engine that takes no time: what is left is physics. For bounds on any engine."""
        device, fused = self.device, self.fused
        memory, compute = device.memory_bandwidth_bytes_per_s, device.compute_flops_per_s
        kernel = ExpertKernel(
            memory_bandwidth_bytes_per_s=memory if fused is None else max(memory, fused.memory_bandwidth_bytes_per_s),
            compute_flops_per_s=compute if fused is None else max(compute, fused.compute_flops_per_s),
            per_call_ns=0,
        )
        cpu = self.cpu and msgspec.structs.replace(self.cpu, per_expert_ns=0, transfer_ns=0)
        engine = EngineProfile(name="none", overhead=NOTHING, quantised="as-stored", fused=kernel)
        return msgspec.structs.replace(self, cpu=cpu, engine=engine)

    def sustained(self) -> "HardwareProfile":
        """The machine as it is after minutes of work: the device at the rates that last."""
        device, percent = self.device, self.device.sustained_percent
        if percent == 100:
            return self
        lasting = msgspec.structs.replace(
            device,
            memory_bandwidth_bytes_per_s=max(device.memory_bandwidth_bytes_per_s * percent // 100, 1),
            compute_flops_per_s=max(device.compute_flops_per_s * percent // 100, 1),
            sustained_percent=100,
        )
        return msgspec.structs.replace(self, device=lasting)

    def copy_ns(self, size_bytes: int) -> int:
        """Nanoseconds of one copy to the device, alone on the link: latency + size / rate, rounded up."""
        return self.link.latency_ns + self.wire_ns(size_bytes)

    def wire_ns(self, size_bytes: int) -> int:
        """Nanoseconds in which a copy's bytes move: size / rate of that size, rounded up. Never falls with size."""
        if size_bytes < 0:
            raise HardwareError(f"a copy of {size_bytes} bytes has no duration; sizes are not negative")
        link = self.link
        if not link.piecewise:
            return ceil_ns(size_bytes, link.one_rate)
        for small, large in pairwise(link.rates):
            if small.bytes <= size_bytes <= large.bytes:
                return _between(small, large, size_bytes)
        nearest = link.rates[0] if size_bytes < link.rates[0].bytes else link.rates[-1]
        return ceil_ns(size_bytes, nearest.bytes_per_s)

    def wire_times(self, sizes: "np.ndarray") -> "np.ndarray":
        """`wire_ns` of many sizes, none negative: arrays [sizes] of Python's integers, which no product exceeds."""
        import numpy as np

        link = self.link
        if not link.piecewise:
            return ceil_ns(sizes, link.one_rate)
        times = ceil_ns(sizes, link.rates[-1].bytes_per_s)
        for small, large in reversed(list(pairwise(link.rates))):
            times = np.where(sizes <= large.bytes, _between(small, large, sizes), times)
        return np.where(sizes < link.rates[0].bytes, ceil_ns(sizes, link.rates[0].bytes_per_s), times)

    def compute_ns(self, flops: int, bytes_read: int) -> int:
        """Nanoseconds of `flops` operations on `bytes_read` bytes: the slower of the two, each rounded up."""
        if flops < 0 or bytes_read < 0:
            raise HardwareError(
                f"work of {flops} operations on {bytes_read} bytes has no duration; neither is negative"
            )
        return max(
            ceil_ns(flops, self.device.compute_flops_per_s),
            ceil_ns(bytes_read, self.device.memory_bandwidth_bytes_per_s),
        )

    def expand_ns(self, bits: int, weights: int, moved_bytes: int, *, meta: bool = False) -> int:
        """Nanoseconds of expanding an expert of so many weights, which reads and writes `moved_bytes`; rounded up.

        `meta`: scales are stored in codes of their own.
        """
        if not self.engine.expansions:
            return self.compute_ns(0, moved_bytes)
        nearest = min(self.engine.expansions, key=lambda one: (abs(one.bits - bits), one.bits, one.meta != meta))
        return nearest.ns(weights)

    def expert_kernel(self, *, fused: bool) -> ExpertKernel:
        """What computes experts: all of a visit in one call, or each by itself, at the device's rates."""
        if fused and self.fused is not None:
            return self.fused
        launch = self.overhead.per_expert_ns
        return ExpertKernel(
            memory_bandwidth_bytes_per_s=self.device.memory_bandwidth_bytes_per_s,
            compute_flops_per_s=self.device.compute_flops_per_s,
            per_call_ns=launch if fused else 0,
            per_expert_ns=0 if fused else launch,
        )

    def expert(
        self,
        stored_bytes: int,
        params: int,
        quantised_bits: int | None,
        kernel: ExpertKernel | None = None,
        *,
        meta: bool = False,
    ) -> Roofline:
        """An expert of so many bytes and parameters on the device, by `kernel` (None: each by itself); no call's cost.

        Quantised experts (`quantised_bits` to a code) are expanded to 16 bits before use, as HQQ does: a kernel of its
        own reads them and writes the expanded weights, which the arithmetic then reads. Unless the engine's kernels
        read them as they are stored.
        """
        read, expand = stored_bytes, 0
        if quantised_bits is not None and self.engine.quantised == "expanded":
            read = 2 * params
            expand = self.expand_ns(quantised_bits, params, stored_bytes + read, meta=meta)
        kernel = kernel or self.expert_kernel(fused=False)
        arithmetic = token_ps(params, kernel.compute_flops_per_s)
        return Roofline(ceil_ns(read, kernel.memory_bandwidth_bytes_per_s), arithmetic, expand, kernel.per_expert_ns)

    @property
    def measured(self) -> bool:
        """Whether the machine was measured, and is under the engine that was measured on it."""
        return self.calibrated and self.engine.name == CALIBRATED

    def to_toml(self) -> str:
        """The profile as TOML text that `load_hardware` reads back equal."""
        import tomli_w

        return tomli_w.dumps(_given(msgspec.to_builtins(self)))

    def _repr_html_(self) -> str:
        tables = _given(msgspec.to_builtins(self)).items()
        rows = [(f"{key}.{name}", v) for key, value in tables if isinstance(value, dict) for name, v in value.items()]
        return html_table(self.name, rows)


def _between(small: Rate, large: Rate, size: Amount) -> Amount:
    """Nanoseconds of copies of sizes between two whose rates are known: time is linear in size. Rounded up."""
    # Over the common denominator of both rates and of the size's place between the two.
    low, high = small.bytes * SECOND * large.bytes_per_s, large.bytes * SECOND * small.bytes_per_s
    over, wide = small.bytes_per_s * large.bytes_per_s, large.bytes - small.bytes
    return -(-(low * wide + (high - low) * (size - small.bytes)) // (over * wide))


def _given(table: dict[str, object]) -> dict[str, object]:
    """What has a value; of the tables in it, what is not empty."""
    given = {key: value for key, value in table.items() if value is not None}
    return {
        key: {k: v for k, v in value.items() if v is not None and v != []} if isinstance(value, dict) else value
        for key, value in given.items()
    }


def hardware_names() -> tuple[str, ...]:
    """Names of the shipped hardware profiles, sorted."""
    return named_toml.names("engine.hardware", "profiles")


def load_hardware(
    machine: "HardwareProfile | str | os.PathLike[str]", engine: "EngineProfile | str | os.PathLike[str] | None" = None
) -> HardwareProfile:
    """A shipped profile by name, or a user's TOML file by path, under an engine. Else a one-line HardwareError.

    `engine` is an engine profile, the name or the path of one, or "calibrated" for the one that the machine's profile
    carries itself. That is also what None means; where the profile carries none, None means `DEFAULT`.
    """
    chosen = None
    if engine is not None and engine != CALIBRATED:
        chosen = engine if isinstance(engine, EngineProfile) else load_engine(engine)
    if isinstance(machine, HardwareProfile):
        return machine if chosen is None else machine.with_engine(chosen)
    label, tables = named_toml.load_tables(
        machine, what="hardware profile", package="engine.hardware", folder="profiles", error=HardwareError
    )
    tables = _engine_apart(label, tables)
    if machine in hardware_names():
        known = shipped_tables(str(machine))
        tables |= known | {"source": [*tables["source"], *known["source"]]}
    if chosen is None and "engine" not in tables:
        if engine == CALIBRATED:
            raise HardwareError(
                f"{label} carries no engine of its own: measure one with tracekit calibrate, or give one of "
                f"{', '.join(engine_names())}"
            )
        chosen = load_engine(DEFAULT)
    if chosen is not None:
        tables["engine"] = msgspec.to_builtins(chosen.on_machine(str(tables.get("name"))))
    return named_toml.convert(tables, HardwareProfile, label=label, error=HardwareError)


def _engine_apart(label: str, tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of a file; one of before engines were apart held the engine's costs among the machine's."""
    device = tables.get("device")
    held: dict[str, Any] = {key: tables[key] for key in ("overhead", "fused") if key in tables}
    if isinstance(device, dict) and "expansions" in device:
        held["expansions"] = device["expansions"]
        tables = tables | {"device": {key: value for key, value in device.items() if key != "expansions"}}
    if not held:
        return tables
    if "engine" in tables:
        raise HardwareError(f"{label}: {' and '.join(held)} belong to the table engine, which is there too: move them")
    rest = {key: value for key, value in tables.items() if key not in held}
    name = CALIBRATED if tables.get("calibrated") is True else OWN
    return rest | {"engine": {"name": name, "source": ["as the machine's profile says"], **held}}

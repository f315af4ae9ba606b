"""Where a format's experts lie: in host memory, or on disk behind a cache in host memory.

What is known of host memory is what the user says of it, else the profile's `[host]`, else the cache that the profile's
`[disk]` is given. Where nothing is known it holds everything, as in a replay.
"""

from typing import Literal, NamedTuple

from msgspec.structs import replace

from engine.hardware import Disk, HardwareProfile
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.shapes import ModelShape
from engine.shapes.sizes import experts_bytes
from engine.simulator.copies import stored_expert_bytes
from tracekit.errors import CapacityError, HardwareError
from tracekit.manifest import Manifest

LATENCY_NS = 100_000
"""Of a disk of which only the rate is known: a read of a usual solid-state disk, assumed."""
Where = Literal["host memory", "disk"]


class Residence(NamedTuple):
    """The machine as a plan finds it whose experts lie there."""

    where: Where
    machine: HardwareProfile

    def said_by(self, plan: Plan, machine: HardwareProfile) -> Plan:
        """The plan, saying so itself where the `machine` as it is does not."""
        if self.where == "host memory" and machine.disk is None:
            return plan
        host = "disk" if self.where == "disk" else "memory"
        return plan.replace(serve=replace(plan.serve, host=host))


class HostMemory(NamedTuple):
    """What a host has for experts in bytes (None: unknown), and how fast its disk reads, where the profile does not
    say."""

    room: int | None = None
    disk_bytes_per_s: int | None = None

    @classmethod
    def of(cls, machine: HardwareProfile, room: int | None = None, disk_bytes_per_s: int | None = None) -> "HostMemory":
        """What was given, else what the profile says."""
        if room is None and machine.host is not None:
            room = max(machine.host.memory_bytes - machine.host.reserved_bytes, 0)
        elif room is None and machine.disk is not None:
            room = machine.disk.host_cache_bytes
        return cls(room, disk_bytes_per_s)


def with_disk(machine: HardwareProfile, host: HostMemory) -> HardwareProfile:
    """The machine with all experts on a disk of that speed, behind a cache of all the room. HardwareError where either
    is not known."""
    if host.disk_bytes_per_s is None:
        if machine.disk is None:
            raise HardwareError("--host-memory is the cache before a disk: give the disk's speed, too (--disk-speed)")
        return replace(machine, disk=replace(machine.disk, host_cache_bytes=host.room or machine.disk.host_cache_bytes))
    if host.room is None:
        raise HardwareError(f"--disk-speed: {machine.name} does not say what the host caches: give --host-memory, too")
    disk = Disk(read_bytes_per_s=host.disk_bytes_per_s, latency_ns=LATENCY_NS, host_cache_bytes=host.room)
    return replace(machine, disk=disk)


def residences(
    plan: Plan, manifest: Manifest, shape: ModelShape | None, machine: HardwareProfile, host: HostMemory
) -> list[Residence]:
    """Where the plan's experts can lie, the better place first. CapacityError where there is none."""
    if host.room is None:
        return [Residence("host memory", machine)]
    experts = all_experts(plan, manifest, shape)
    together = machine.host is not None and machine.host.holds_dense
    found = []
    if experts <= host.room:
        left = host.room - experts if together else machine.device.memory_bytes
        found.append(Residence("host memory", replace(_with_device(machine, left), disk=None)))
    disk = machine.disk if host.disk_bytes_per_s is None else with_disk(machine, host).disk
    if disk is not None:
        # Slots and the host's cache share what there is where the device computes in the host's memory.
        cache = host.room // 2 if together else host.room
        left = host.room - cache if together else machine.device.memory_bytes
        disk = replace(disk, host_cache_bytes=min(cache, experts))
        found.append(Residence("disk", replace(_with_device(machine, left), disk=disk)))
    if not found:
        raise CapacityError(
            f"its experts take {experts / 2**30:.1f} GiB, the host has {host.room / 2**30:.1f} GiB for them, and "
            "nothing is known of a disk: give its speed (--disk-speed 3GB/s), or a profile with [disk]"
        )
    return found


def all_experts(plan: Plan, manifest: Manifest, shape: ModelShape | None) -> int:
    """Bytes of all experts as the plan stores them. CapacityError where sizes are unknown."""
    if shape is not None:
        return experts_bytes(shape, WeightFormat.parse(plan.weights.experts or "bf16"))
    sizes = stored_expert_bytes(manifest, None, plan.weights.experts)
    if not sizes:
        raise CapacityError("the trace does not say how large experts are: give a model shape")
    return sum(count * size for count, size in zip(manifest.experts_per_layer, sizes, strict=True))


def _with_device(machine: HardwareProfile, most: int) -> HardwareProfile:
    """The machine with no more than so many bytes of device memory."""
    size = max(min(machine.device.memory_bytes, most), 1 << 20)
    return replace(machine, device=replace(machine.device, memory_bytes=size))

"""HardwareProfile: a machine as the simulator sees it, and the two times that follow from it alone.

All quantities are integers in the unit their name ends with. `copy_ns` is the latency-plus-bandwidth model of
a transfer, `compute_ns` the roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)).
"""

import json
import os
from typing import Annotated

import msgspec

from engine import tables
from tracekit.errors import HardwareError

# Wide enough for a microcontroller and for a rack, narrow enough to catch a wrong unit.
MemoryBytes = Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 50)]
BytesPerSecond = Annotated[int, msgspec.Meta(ge=1_000, le=10**15)]
FlopsPerSecond = Annotated[int, msgspec.Meta(ge=1_000_000, le=10**18)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=10_000_000_000)]
_SECOND_NS = 1_000_000_000


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The accelerator itself."""

    memory_bytes: MemoryBytes
    """Memory of the device."""
    memory_bandwidth_bytes_per_s: BytesPerSecond
    """Rate at which the device reads its own memory."""
    compute_flops_per_s: FlopsPerSecond
    """Dense fp16 or bf16 matrix rate with fp32 accumulation; a multiply-add is two operations."""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The way from host memory to the device."""

    host_to_device_bytes_per_s: BytesPerSecond
    """Effective rate of one large copy from pinned host memory."""
    latency_ns: Nanoseconds
    """Fixed time of a copy, whatever its size."""
    copy_engines: Annotated[int, msgspec.Meta(ge=1, le=2)]
    """Host-to-device copies that may be in flight together; two share the link's rate."""


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


class HardwareProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine. Read one with `load_hardware`; values are checked against physical limits when read."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    description: str
    calibrated: bool
    """True when measured on a machine; False when written from data sheets and stated assumptions."""
    source: list[str]
    """Where the numbers come from, one entry per claim."""
    device: Device
    link: Link
    overhead: Overhead

    def copy_ns(self, size_bytes: int) -> int:
        """Nanoseconds of one copy to the device, alone on the link: latency + size / rate, rounded up."""
        if size_bytes < 0:
            raise HardwareError(f"a copy of {size_bytes} bytes has no duration; sizes are not negative")
        return self.link.latency_ns + _ceil_ns(size_bytes, self.link.host_to_device_bytes_per_s)

    def compute_ns(self, flops: int, bytes_read: int) -> int:
        """Nanoseconds of `flops` operations on `bytes_read` bytes: the slower of the two, each rounded up."""
        if flops < 0 or bytes_read < 0:
            raise HardwareError(
                f"work of {flops} operations on {bytes_read} bytes has no duration; neither is negative"
            )
        return max(
            _ceil_ns(flops, self.device.compute_flops_per_s),
            _ceil_ns(bytes_read, self.device.memory_bandwidth_bytes_per_s),
        )

    def to_toml(self) -> str:
        """The profile as TOML text that `load_hardware` reads back equal."""
        lines = [_entry(key, getattr(self, key)) for key in ("name", "description", "calibrated")]
        lines += ["source = [", *(f"  {_quoted(line)}," for line in self.source), "]"]
        for title in ("device", "link", "overhead"):
            table = msgspec.structs.asdict(getattr(self, title))
            lines += ["", f"[{title}]", *(_entry(key, value) for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _ceil_ns(amount: int, per_second: int) -> int:
    return -(-amount * _SECOND_NS // per_second)


def _entry(key: str, value: str | bool | int) -> str:
    if isinstance(value, bool):
        return f"{key} = {str(value).lower()}"
    return f"{key} = {_quoted(value)}" if isinstance(value, str) else f"{key} = {value:_}"


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def hardware_names() -> tuple[str, ...]:
    """Names of the shipped hardware profiles, sorted."""
    return tables.names("engine.hardware", "profiles")


def load_hardware(name_or_path: str | os.PathLike[str]) -> HardwareProfile:
    """A shipped profile by name, or a user's TOML file by path. Anything else is a one-line HardwareError."""
    return tables.load(
        name_or_path,
        HardwareProfile,
        what="hardware profile",
        package="engine.hardware",
        folder="profiles",
        error=HardwareError,
    )

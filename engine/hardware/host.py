"""The host as a machine of its own: what its memory must hold, and what a disk reads with so many reads at a time."""

from itertools import pairwise
from typing import Annotated, NamedTuple

import msgspec

from engine.hardware.quantities import BytesPerSecond, MemoryBytes

MOST_LANES = 64


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The host's memory. Without this table it holds whatever it is asked to."""

    memory_bytes: MemoryBytes
    """All of it."""
    reserved_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    """Of these, what the system, other programs and the engine itself take."""
    holds_dense: bool = False
    """Whether the device computes in this memory, as a phone's or a CPU does: dense weights lie here, too, mapped from
    the disk; what does not fit beside the experts is read again at every step."""


class Lanes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a disk was found to read with so many reads at a time."""

    reads: Annotated[int, msgspec.Meta(ge=1, le=MOST_LANES)]
    """Reads under way together."""
    bytes_per_s: BytesPerSecond
    """Of all of them together."""


class Room(NamedTuple):
    """How a host's memory is divided: bytes for experts, and dense bytes that are read from disk at every step."""

    experts: int
    faulted: int


def check_lanes(lanes: list[Lanes]) -> None:
    """Raise ValueError unless numbers of reads ascend, and a read never ends sooner for being one of more."""
    for few, many in pairwise(lanes):
        if few.reads >= many.reads:
            raise ValueError(f"disk.lanes: numbers of reads must ascend, but {many.reads} follows {few.reads}")
        if many.bytes_per_s * few.reads > few.bytes_per_s * many.reads:
            raise ValueError(f"disk.lanes: one of {many.reads} reads would be faster than one of {few.reads}")


def total_rate(lanes: list[Lanes], alone: int, reads: int) -> int:
    """Bytes per second of so many reads together: linear in their number between those measured, `alone` for one."""
    known = [(1, alone), *((one.reads, one.bytes_per_s) for one in lanes if one.reads > 1)]
    for (few, low), (many, high) in pairwise(known):
        if reads <= many:
            return low + (high - low) * (reads - few) // (many - few)
    return known[-1][1]


def divided(host: Host, experts: int, dense: int) -> Room:
    """What so many bytes of experts and of dense weights get of a host's memory: dense weights make way first."""
    room = max(host.memory_bytes - host.reserved_bytes, 0)
    kept = min(experts, room)
    if not host.holds_dense:
        return Room(kept, 0)
    return Room(kept, min(dense, max(0, kept + dense - room)))

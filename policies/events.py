"""Events: what was decided, one number each, in the order it was decided.

A replay writes an event for every lookup and every load, so an event is one 64-bit number: the kind in bits 59 to 62,
the slot in bits 32 to 58, the expert's key in bits 0 to 31. `Events` gives them back as columns.

Kinds stand in an order in which what belongs together is a range: hits up to HIT_PREFETCHED, misses from HOST to ADMIT,
copies from LOAD to PREFETCH.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# What an event records. An expert that is evicted or dropped leaves before the load that takes its place is written.
HIT = 0  # the expert is resident, because the cache kept it
HIT_PINNED = 1  # the expert is resident and may never be evicted
HIT_PREFETCHED = 2  # the expert was loaded ahead and is demanded for the first time since
HOST = 3  # a miss that the host computes where the expert lies: nothing is copied, and there is no slot
LOAD = 4  # demand load into the cache
BYPASS = 5  # demand load through a staging buffer, not kept
ADMIT = 6  # a miss that the host computes, while the expert is copied into the cache for later visits
PREFETCH = 7  # load ahead of demand
EVICT = 8  # the expert loses its cache slot
DROP = 9  # a staged expert is given up unused

KIND_NAMES = (
    *("hit", "hit-pinned", "hit-prefetched", "host", "load", "bypass", "admit"),
    *("prefetch", "evict", "drop"),
)
KINDS = len(KIND_NAMES)
KIND_SHIFT = 59
SLOT_SHIFT = 32
SLOT_MASK = (1 << 27) - 1
KEY_MASK = (1 << 32) - 1
NO_SLOT = SLOT_MASK  # as an event holds it; in the column `slot` it is -1
SIGN = 63 - 58  # to shift to the left, so that a slot's highest bit is a number's sign
MOST_SLOTS = 1 << 26  # so that -1 is no slot; the signed 32 bits of a place have room for twice as many


class EventBuffer(NamedTuple):
    """Room that the kernel writes events to."""

    code: np.ndarray  # i64: packed events
    start: np.ndarray  # i64 [visits + 1]: a visit's part of `code`


def pack(kind: int, expert: int, slot: int) -> np.int64:
    """One event as a number."""
    # Widened first: interpreted code hands over numpy numbers of 32 bits, which would be shifted out of.
    return np.int64(kind) << KIND_SHIFT | np.int64(slot) << SLOT_SHIFT | np.int64(expert)


@dataclass(frozen=True, slots=True)
class Events:
    """The decisions of consecutive visits, `first_visit` the running number of the first.

    `code` [events] i64 is as `pack` made it; `start` [visits + 1] i64 delimits each visit's part. The columns `visit`
    (running number), `kind`, `expert` (key) and `slot` are computed when asked for. `orderly` says that no visit evicts
    what it demands, so that no slot is loaded in the visit that uses it: bounds may, once it is used.
    """

    code: np.ndarray
    start: np.ndarray
    first_visit: int = 0
    orderly: bool = False

    def __len__(self) -> int:
        return len(self.code)

    @property
    def visit(self) -> np.ndarray:
        """i64 [events]: running number of the visit."""
        return np.repeat(np.arange(len(self.start) - 1) + self.first_visit, np.diff(self.start))

    @property
    def kind(self) -> np.ndarray:
        """u8 [events]: one of the kinds above."""
        return (self.code >> KIND_SHIFT).astype(np.uint8)

    @property
    def expert(self) -> np.ndarray:
        """i32 [events]: key of the expert, `layer * experts + expert`."""
        return (self.code & KEY_MASK).astype(np.int32)

    @property
    def slot(self) -> np.ndarray:
        """i32 [events]: the slot that the expert is in, comes to or leaves; -1 where it has none."""
        return (self.code << SIGN >> SIGN + SLOT_SHIFT).astype(np.int32)

    def unpacked(self) -> list[tuple[int, int, int]]:
        """Kind, expert and slot of each event, NO_SLOT for none: for few events the quickest way to read them."""
        return [(code >> KIND_SHIFT, code & KEY_MASK, code >> SLOT_SHIFT & SLOT_MASK) for code in self.code.tolist()]

    def part(self, first: int, last: int) -> "Events":
        """The events of the visits from number `first` of these up to `last`."""
        start = self.start[first : last + 1]
        return Events(self.code[start[0] : start[-1]], start - start[0], self.first_visit + first, self.orderly)

    def rows(self) -> list[tuple[int, int, int, int]]:
        """Visit, kind, expert and slot of each event."""
        columns = (self.visit, self.kind, self.expert, self.slot)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int]], visits: int, first_visit: int = 0) -> "Events":
        """Events of `visits` visits from (visit, kind, expert, slot), in order of visits."""
        code = np.array([pack(kind, expert, slot & SLOT_MASK) for _, kind, expert, slot in rows], np.int64)
        counts = np.bincount([visit - first_visit for visit, *_ in rows], minlength=visits)
        return cls(code, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), first_visit)

    @classmethod
    def join(cls, pieces: Sequence["Events"]) -> "Events":
        """Pieces that follow each other as one; no events at all when there are none."""
        if not pieces:
            return cls(np.empty(0, np.int64), np.zeros(1, np.int64))
        ends = np.cumsum([0] + [len(piece) for piece in pieces])
        starts = [piece.start[:-1] + end for piece, end in zip(pieces, ends, strict=False)]
        code = np.concatenate([piece.code for piece in pieces])
        start = np.concatenate([*starts, ends[-1:]]).astype(np.int64)
        return cls(code, start, pieces[0].first_visit, all(piece.orderly for piece in pieces))


def event_buffer(lookups: int, visits: int, residents: int, staging: int, suggestions: int) -> EventBuffer:
    """Room for the events that `visits` visits with `lookups` lookups can write in the worst case."""
    loads = lookups + visits * suggestions
    size = lookups + 2 * loads + residents + staging
    return EventBuffer(np.empty(size, np.int64), np.zeros(visits + 1, np.int64))

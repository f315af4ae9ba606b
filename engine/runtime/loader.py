"""`Loader`: the copies that a visit's decisions ask for, in the order of the decisions."""

from engine.runtime.links.queued_link import Copy, Link, Ticket
from engine.runtime.pool import Pool
from engine.runtime.storage.store import Store
from policies.events import ADMIT, BYPASS, EVICT, HIT_PREFETCHED, HOST, LOAD, PREFETCH, Events

KINDS = {LOAD: "load", BYPASS: "bypass", ADMIT: "admit", PREFETCH: "prefetch"}


class Loader:
    """Owns every copy between the decision that asks for it and the computation that uses it.

    A copy into a slot must not begin while the slot's previous expert is still to be computed, which happens when a
    visit demands more than fits: then one slot serves several experts, one after the other. Copies therefore leave in
    the order of the decisions, and the first one whose slot is taken holds up those behind it until that expert is
    `done`. Experts are computed in the order that `begin` returns: then each one's copy leaves before it is computed.
    """

    def __init__(self, store: Store, pool: Pool, link: Link) -> None:
        self.store, self.pool, self.link = store, pool, link
        self.bytes = dict.fromkeys(KINDS.values(), 0)  # asked of the link and not cancelled
        # What became of prefetches: copied when demanded, still on their way, or given up unused.
        self.prefetches = dict.fromkeys(("useful", "late", "wasted"), 0)
        self._unused: set[int] = set()  # prefetched and not yet demanded
        self._held: dict[int, tuple[int, int]] = {}  # key -> (slot, kind): decided, not yet asked of the link
        self._tickets: dict[int, tuple[Ticket, int]] = {}  # key -> (ticket, kind): asked, not yet waited for
        self._slot: dict[int, int] = {}  # this visit's experts that are still to be computed
        self._taken: set[int] = set()  # slots of those whose copy has left or was never needed

    def begin(self, events: Events) -> list[int]:
        """Ask for what a visit copies; returns the keys that the device is to compute, what is there first.

        What the host computes is not among them. If it is admitted, its copy comes behind all that is demanded.
        """
        arrived: list[int] = []
        arriving: list[int] = []
        missing: list[int] = []
        for kind, key, slot in events.unpacked():
            if kind <= HIT_PREFETCHED:
                self._slot[key] = slot
                self._taken.add(slot)
                there = key not in self._tickets or self._has_arrived(key)
                (arrived if there else arriving).append(key)
                if kind == HIT_PREFETCHED:
                    self._unused.discard(key)
                    self.prefetches["useful" if there else "late"] += 1
            elif kind >= EVICT:
                self._give_up(key)
            elif kind != HOST:
                self._held[key] = (slot, kind)
                if kind == PREFETCH:
                    self._unused.add(key)
                elif kind != ADMIT:
                    self._slot[key] = slot
                    missing.append(key)
        if self._held:
            self._ask()
        return arrived + arriving + missing

    def is_there(self, key: int) -> bool:
        """Whether an expert that was demanded and had been decided on before can be computed without a wait."""
        return key not in self._tickets or self._tickets[key][0].arrived

    def awaits(self, key: int) -> bool:
        """Whether the copy of a demanded expert has still to be waited for."""
        return key in self._tickets

    def arrive(self, key: int) -> None:
        """Wait for the copy of a demanded expert, if there is one. ModelError if it failed."""
        if key in self._tickets:
            self.link.wait(self._tickets.pop(key)[0])

    @property
    def unused(self) -> int:
        """Experts that were prefetched, and neither demanded nor given up so far."""
        return len(self._unused)

    def slot(self, key: int) -> int:
        """Where a demanded expert is, between `begin` and `done`."""
        return self._slot[key]

    def done(self, key: int) -> None:
        """The expert has been computed: its slot may be overwritten."""
        self._taken.discard(self._slot.pop(key))
        if self._held:
            self._ask()

    def forget(self) -> None:
        """Give up all copies, as before a cache that starts empty."""
        for ticket, _ in self._tickets.values():
            self.link.cancel(ticket)
        self._tickets.clear()
        self._held.clear()
        self._slot.clear()
        self._taken.clear()
        self._unused.clear()
        self.bytes = dict.fromkeys(KINDS.values(), 0)
        self.prefetches = dict.fromkeys(self.prefetches, 0)

    def _has_arrived(self, key: int) -> bool:
        ticket, _ = self._tickets[key]
        self.link.promote(ticket)
        return ticket.arrived

    def _ask(self) -> None:
        copies: list[Copy] = []
        asked: list[tuple[int, int]] = []
        for key, (slot, kind) in self._held.items():
            if slot in self._taken:
                break
            source = self.store.slab(key)
            copies.append((source, self.pool.slab(slot, source.numel()), kind < ADMIT))
            asked.append((key, kind))
            if key in self._slot:
                self._taken.add(slot)
        if not copies:
            return
        for ticket, (key, kind) in zip(self.link.copies(copies), asked, strict=True):
            del self._held[key]
            self._tickets[key] = (ticket, kind)
            self.bytes[KINDS[kind]] += ticket.size

    def _give_up(self, key: int) -> None:
        """The expert loses its place. What has started of its copy still runs, ahead of any later one to its slot."""
        self._held.pop(key, None)
        if key in self._unused:
            self._unused.discard(key)
            self.prefetches["wasted"] += 1
        if key in self._tickets:
            ticket, kind = self._tickets.pop(key)
            self.bytes[KINDS[kind]] -= self.link.cancel(ticket)

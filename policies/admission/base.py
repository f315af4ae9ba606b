"""The contract of an admission policy."""

from typing import ClassVar

from policies.fields import Policy


class Admission(Policy):
    """Decides whether the cache may take in an expert that was missed: where there is no room, it was asked in vain.

    At each visit the cache calls `on_hit` for every lookup that found the expert there, then `admits` for each missing
    expert, in (token, slot) order of first reference, and `on_evict` for what then makes room. What is prefetched is
    not asked for: it goes where the plan's `prefetch` says. Nor are experts of which the plan says beforehand that the
    host computes them and nothing is copied (`miss.where = "split"`). Pinned experts are never heard of.

    Experts are named by their key (see `policies.fields.Layout`), time is the number of the visit.

    `reads` declares what the `signal` of a lookup is: "nothing" (0.0) or "gate-share" (the expert's part, from 0 to 1,
    of the gate weights that the visit's tokens gave to all experts).
    """

    READABLE: ClassVar[tuple[str, ...]] = ("nothing", "gate-share")
    reads: ClassVar[str] = "nothing"

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        """A lookup found the expert in the cache, or in a staging buffer."""

    def admits(self, expert: int, group: int, now: int, signal: float) -> bool:
        """Whether the missing expert may come into the cache."""
        return True

    def on_evict(self, expert: int, group: int, now: int) -> None:
        """The expert has lost its slot."""

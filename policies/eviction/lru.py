"""Least recently used: the policy of Eliseev & Mazur 2023 (arXiv 2312.17238), section 3.1."""

from policies.eviction.fifo import Fifo
from policies.eviction.lists import head, push, remove


class Lru(Fifo):
    """Evicts the expert whose last reference is oldest: first in, first out, with each reference entering anew."""

    name = "lru"
    summary = "least recently used"
    source = "Eliseev & Mazur 2023, arXiv 2312.17238, section 3.1"

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        if head(self.ends, group) != expert:
            remove(self.links, self.ends, group, expert)
            push(self.links, self.ends, group, expert)

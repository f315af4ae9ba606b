"""Every expert is in its slot when it is computed, whatever the policy decides and however slow the copies are."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.events import ADMIT, HOST

torch = pytest.importorskip("torch")
from engine.runtime.links.queued_link import Copy, Progress, Ticket  # noqa: E402  # needs torch
from engine.runtime.loader import Loader  # noqa: E402
from engine.runtime.pool import SlotPool  # noqa: E402
from engine.runtime.storage.slab_layout import Field, PlainLayout  # noqa: E402
from engine.runtime.storage.store import Store  # noqa: E402

LAYERS, EXPERTS = 3, 6


class KeyStore(Store):
    """Slabs of one byte, the expert's key; their layout says that they have `size`."""

    def __init__(self, size: int = 1, experts: int = EXPERTS) -> None:
        self.experts, self.bytes = experts, 0
        self.layouts = [PlainLayout((Field("key", torch.uint8, (size,), 0),))] * LAYERS

    def slab(self, key: int, size: int | None = None) -> Any:
        return torch.tensor([key], dtype=torch.uint8)


class LazyLink:
    """Copies only when somebody waits or `progress` is called: the slowest link that keeps the rules."""

    in_flight, piece_bytes = 1, 0

    def __init__(self) -> None:
        self.demand: deque[Ticket] = deque()
        self.prefetch: deque[Ticket] = deque()

    def copies(self, asked: Sequence[Copy]) -> list[Ticket]:
        tickets = [Ticket(source, target, demand=demand) for source, target, demand in asked]
        for ticket in tickets:
            (self.demand if ticket.demand else self.prefetch).append(ticket)
        return tickets

    def promote(self, ticket: Ticket) -> None:
        if ticket in self.prefetch:
            self.prefetch.remove(ticket)
            self.demand.append(ticket)

    def cancel(self, ticket: Ticket) -> int:
        for queue in (self.demand, self.prefetch):
            if ticket in queue:
                queue.remove(ticket)
                ticket.progress = Progress.CANCELLED
                return ticket.size
        return 0

    def wait(self, ticket: Ticket) -> None:
        while not ticket.arrived:
            self.progress()

    def progress(self) -> None:
        if self.demand or self.prefetch:
            ticket = (self.demand or self.prefetch).popleft()
            ticket.target.copy_(ticket.source)
            ticket.progress = Progress.DONE

    def close(self) -> None: ...


visits = st.lists(
    st.permutations(range(EXPERTS)).flatmap(lambda order: st.integers(0, EXPERTS).map(lambda n: order[:n]))
)


@settings(max_examples=150, deadline=None)
@given(
    demands=visits,
    hints=st.randoms(use_true_random=False),
    capacity=st.sampled_from([(0,), (1,), (4,), (9,), (1, 1, 1), (2, 0, 3), (6, 6, 6)]),
    staging=st.integers(1, 4),
    into_cache=st.booleans(),
    progress=st.integers(0, 3),
    where=st.sampled_from(["copy", "host", "auto"]),
)
def test_what_is_computed_has_arrived(
    demands: list[list[int]],
    hints: Any,
    capacity: tuple[int, ...],
    staging: int,
    into_cache: bool,
    progress: int,
    where: str,
) -> None:
    """By the device; what the host computes has no slot yet, and is there when a later visit finds it."""
    size = np.ones(LAYERS * EXPERTS, np.int64)
    spec = CacheSpec(LAYERS, EXPERTS, capacity, size, "lfu", None, "gate", None, 1, 3, staging, into_cache)
    spec = replace(spec, where=where, most_tokens=(1,) * LAYERS, per_step=None if where == "copy" else 4)
    cache, link = ExpertCache(spec), LazyLink()
    pool = SlotPool(cache.slots, 1, torch.device("cpu"))
    for slot in range(cache.slots):
        pool.slab(slot, 1).fill_(255)
    loader = Loader(KeyStore(), pool, link)
    for number, demand in enumerate(demands):
        layer = number % LAYERS
        ahead = hints.sample(range(EXPERTS), 3) if layer + 1 < LAYERS else []
        tokens = [1 + expert % 2 for expert in demand] if spec.counts_tokens else ()
        events = cache.visit(layer, demand, None, ahead, (), tokens)
        order = loader.begin(events)
        hosted = [key for kind, key, _ in events.unpacked() if kind in (HOST, ADMIT)]
        assert sorted(order + hosted) == sorted(layer * EXPERTS + expert for expert in demand)
        for key in order:
            for _ in range(progress):
                link.progress()
            loader.arrive(key)
            assert int(pool.slab(loader.slot(key), 1)[0]) == key
            for other in order[order.index(key) + 1 :]:
                if other not in loader._tickets and other not in loader._held:
                    assert int(pool.slab(loader.slot(other), 1)[0]) == other, "overwritten before its turn"
            loader.done(key)
        assert not loader._held, "a copy was decided and never asked for"
        assert len(loader._tickets) <= cache.slots


def test_a_prefetch_that_is_demanded_before_it_has_started_is_promoted() -> None:
    """Layer 0 prefetches experts 0 to 2 of layer 1, which then demands only the last, and another besides."""
    size = np.ones(LAYERS * EXPERTS, np.int64)
    spec = CacheSpec(LAYERS, EXPERTS, (4, 4, 4), size, prefetch="gate", count=3, staging=4)
    cache, link = ExpertCache(spec), LazyLink()
    loader = Loader(KeyStore(), SlotPool(cache.slots, 1, torch.device("cpu")), link)
    loader.begin(cache.visit(0, [], None, [0, 1, 2]))
    assert len(link.prefetch) == 3
    assert loader.begin(cache.visit(1, [5, 2], None, [])) == [EXPERTS + 2, EXPERTS + 5]
    assert [int(ticket.source[0]) for ticket in link.demand] == [EXPERTS + 2, EXPERTS + 5]
    assert len(link.prefetch) == 0, "what layer 1 does not demand is dropped and cancelled"
    assert loader.bytes == {"load": 1, "bypass": 0, "admit": 0, "prefetch": 1}

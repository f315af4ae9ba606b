"""`GroupedVisits`: the experts of an offloaded model's visits, computed by grouped kernels in the slots where they are.

What is there is computed at once. Of a visit of one token everything else is computed in one more call, when the last
copy has landed: its computing is next to nothing beside the copies, so launches count. Of several tokens each missing
expert is computed as it arrives, since there is something to hide. Where the plan wants experts fused, one call
computes all of them. One slot may serve several experts of a visit, one after the other: those are in several calls.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from torch import Tensor

from engine.runtime.clocks.timing import Clock
from engine.runtime.experts.grouped import Call, Stack
from engine.runtime.experts.stacked import Bytes, shape_of
from engine.runtime.loader import Loader
from engine.runtime.pool import SlotPool
from engine.runtime.storage.slab_layout import Layout
from engine.runtime.visit_routing import Routing, TokenRouting
from policies.events import HIT_PREFETCHED, Events
from tracekit.recorder.seam import MoeLayer


class GroupedVisits:
    """Serves visits of all layers from one pool. `fused`: whether all of a visit's experts are waited for at first."""

    def __init__(self, layers: Sequence[MoeLayer], layouts: Sequence[Layout], pool: SlotPool, *, fused: bool) -> None:
        self.fused = fused
        self._stacks = [_stack(layer, layout, pool) for layer, layout in zip(layers, layouts, strict=True)]

    def visit(
        self,
        layer: int,
        base: int,
        loader: Loader,
        clock: Clock,
        events: Events,
        routing: Routing | TokenRouting,
        hidden: Tensor,
        factors: Tensor,
    ) -> Tensor:
        """One visit, decided as `events` say: hidden [tokens, hidden], factors [tokens, k]. Returns [tokens, hidden].

        `base` is the layer's first key.
        """
        keys = loader.begin(events)
        slots = {key: loader.slot(key) for key in keys}
        hits = {key for kind, key, _ in events.unpacked() if kind <= HIT_PREFETCHED}
        here = [] if self.fused else list(takewhile(lambda key: key in hits and loader.is_there(key), keys))
        groups = list(self._groups(here, keys[len(here) :], slots, alone=len(hidden) == 1))
        places = {key - base: slot for key, slot in slots.items()}
        by_expert = [[key - base for key in group] for group in groups]
        call = Call(self._stacks[layer], by_expert, places, routing, hidden, factors)
        for number, group in enumerate(groups):
            awaited = [key for key in group if loader.awaits(key)]
            if awaited:
                start = clock.mark()
                for key in awaited:
                    loader.arrive(key)
                clock.add_wait(start)
            call.compute(number)
            for key in group:
                loader.done(key)
        return call.out

    def _groups(self, here: list[int], others: list[int], slots: dict[int, int], *, alone: bool) -> Iterator[list[int]]:
        """The keys of each call, in the order in which copies leave. There is at least one call, if of nothing."""
        if here:
            yield here
        group, taken = list[int](), set[int]()
        for key in others:
            if slots[key] in taken or (group and not alone and not self.fused):
                yield group
                group, taken = [], set()
            group.append(key)
            taken.add(slots[key])
        if group or not here:
            yield group


def _stack(layer: MoeLayer, layout: Layout, pool: SlotPool) -> Stack:
    slots = Bytes(pool.all, pool.stride)
    return Stack(
        shape_of(layer.experts, layout), (slots, slots), (slots, slots), lambda slot: [pool.slab(slot, layout.bytes)]
    )

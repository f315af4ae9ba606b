"""`VisitExperts`: one visit's experts, computed on the device as they arrive or by the CPU lane."""

from collections.abc import Collection

import torch
from torch import Tensor

from engine.runtime.clocks.timing import Clock
from engine.runtime.cpu_lane import CpuLane
from engine.runtime.experts.eager import Forward
from engine.runtime.loader import Loader
from engine.runtime.pool import Pool
from engine.runtime.storage.slab_layout import Layout
from engine.runtime.visit_routing import Routing, TokenRouting
from policies.events import ADMIT, HOST, Events


class VisitExperts:
    """The experts of one visit. `clock` is told when nothing could be computed; `base` is the layer's first key, and
    `lows` are the experts that their low copy serves, `low_base` keys further on."""

    __slots__ = ("base", "clock", "forward", "lane", "layout", "loader", "low_base", "lows", "pool")

    def __init__(
        self,
        loader: Loader,
        pool: Pool,
        lane: CpuLane | None,
        clock: Clock,
        base: int,
        layout: Layout,
        forward: Forward,
        lows: Collection[int] = (),
        low_base: int = 0,
    ) -> None:
        self.loader, self.pool, self.lane, self.clock = loader, pool, lane, clock
        self.base, self.layout, self.forward = base, layout, forward
        self.lows, self.low_base = lows, low_base

    def begin(self, layer: int, events: Events, routing: Routing | TokenRouting, hidden: Tensor) -> list[int]:
        """Ask for what is missing; returns the demanded experts in the order in which to compute them."""
        lane, base = self.lane, self.base
        order = self.loader.begin(events)
        if lane is None:
            return [key - base if key < self.low_base or not self.lows else key - base - self.low_base for key in order]
        hosted = [key for kind, key, _ in events.unpacked() if kind in (HOST, ADMIT)]
        if hosted:  # after the copies have left: rows are waited for
            rows = [routing.rows(hidden, key - base) for key in hosted]
            if hidden.device.type != "cpu":
                rows = list(torch.split(torch.cat(rows).cpu(), [len(part) for part in rows]))
            for key, part in zip(hosted, rows, strict=True):
                lane.submit(key, part)
        return [key - base for key in order + hosted]

    def compute(self, expert: int, rows: Tensor) -> Tensor:
        """One expert on rows [n, hidden]; waits for its copy, or for the lane."""
        key, layout = self.base + expert, self.layout
        if expert in self.lows:
            key += self.low_base
            layout = self.loader.store.layout(key)
        if self.lane is not None and self.lane.has(key):
            start = self.clock.mark()
            out = self.lane.result(key, rows.device)
            self.clock.add_wait(start)
            return out
        if self.loader.awaits(key):
            start = self.clock.mark()
            self.loader.arrive(key)
            self.clock.add_wait(start)
        out = self.forward(layout.weights(self.pool.views(self.loader.slot(key), layout)), rows)
        self.loader.done(key)
        return out

"""What alters a model, to first order and in a closed loop: how far a replay of recorded gates is from the engine.

To first order: the unaltered model's gates were recorded, and a replay alters their choices, or serves them by low
copies, by the plan's cache. Closed loop: the engine did so while it ran, so that later gates, and the text itself, are
the altered model's. Both are timed on one modelled machine; decisions of the closed loop are the engine's own.
"""

from collections.abc import Sequence

import msgspec

from engine.decisions.rerouted import CLOSED_LOOP, FIRST_ORDER, rerouted, routing_spec
from engine.plan.plan import Plan
from engine.replay.copies import LOOKUPS
from engine.replay.passes import Replayed, run
from engine.replay.result import AlteredRouting, altered_routing
from engine.replay.setting import Setting
from engine.replay.summary import counts_of, time_of
from policies.rerouting import Altered
from tracekit.errors import TracekitError
from tracekit.rows import DECODE
from tracekit.trace import Trace


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One side: of decode steps its hit ratio, demand loads of a token and modelled tokens per second."""

    tokens: int
    hit_ratio: float
    loads_per_token: float
    tokens_per_second: float | None
    label: str
    routing: AlteredRouting | None = None
    low_share: float | None = None
    """Where experts have two copies, the share of lookups that low ones served."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides, and how far the first order is off, as shares of the closed loop's (of hit ratios the difference).

    `first_order` is None, with `why`, where it cannot be estimated.
    """

    closed_loop: Order
    first_order: Order | None = None
    why: str | None = None
    hit_ratio_error: float | None = None
    loads_error: float | None = None
    tokens_per_second_error: float | None = None

    def sentence(self) -> str:
        """One line for people."""
        if self.first_order is None:
            return f"no first-order estimate: {self.why}"
        speed, loads = self.tokens_per_second_error, self.loads_error
        parts = [f"hit ratio {100 * (self.hit_ratio_error or 0.0):+.1f} points"]
        parts += [] if loads is None else [f"loads {100 * loads:+.1f} %"]
        parts += [] if speed is None else [f"tokens/s {100 * speed:+.1f} %"]
        return f"the first-order estimate is off the closed loop by {', '.join(parts)}"


def compare_orders(plan: Plan, setting: Setting, unaltered: Trace, engine: Trace, altered: Altered | None) -> Orders:
    """What `plan` does to first order on the `unaltered` model's trace, and what it did in the `engine`'s.

    `setting` is of the plan as the engine stores experts; `altered` what the engine counted, None of precision tiers
    alone, which leave the gates their choices.
    """
    closed = _order(setting, engine, CLOSED_LOOP, altered)
    try:
        if plan.routing.alters:
            spec = routing_spec(plan.routing, unaltered.manifest)
            found = rerouted(unaltered, setting.spec, spec)
            first = _order(setting, found.trace, FIRST_ORDER, found.altered())
        else:
            first = _order(setting, unaltered, FIRST_ORDER, None)
    except TracekitError as error:
        return Orders(closed_loop=closed, why=str(error))
    return Orders(
        closed_loop=closed,
        first_order=first,
        hit_ratio_error=first.hit_ratio - closed.hit_ratio,
        loads_error=_off(first.loads_per_token, closed.loads_per_token),
        tokens_per_second_error=_off(first.tokens_per_second, closed.tokens_per_second),
    )


def _order(setting: Setting, trace: Trace, label: str, altered: Altered | None) -> Order:
    done: Replayed
    (done,) = run(trace, setting.spec, [setting.target], keep=True)
    counts, time = counts_of(done, [DECODE], sized=True), time_of(setting, done)
    served = done.step_copies[done.phase == DECODE, :, LOOKUPS].sum(axis=0).tolist() if done.step_copies.size else None
    return Order(
        tokens=counts.tokens,
        hit_ratio=counts.hit_ratio,
        loads_per_token=counts.misses / max(counts.tokens, 1),
        tokens_per_second=None if time is None else time.tokens_per_second,
        label=label,
        routing=None if altered is None else altered_routing(setting.plan.routing.policy, label, altered),
        low_share=None if served is None else served[1] / max(sum(served), 1),
    )


def _off(given: float | None, right: float | None) -> float | None:
    return given / right - 1 if given is not None and right else None


def order_rows(orders: Orders | None) -> list[tuple[str, str]]:
    """What people want to know of it."""
    if orders is None:
        return []
    sides: Sequence[Order] = [orders.closed_loop, *([] if orders.first_order is None else [orders.first_order])]
    rows = []
    for one in sides:
        speed = "-" if one.tokens_per_second is None else f"{one.tokens_per_second:.2f}"
        rows += [
            (
                f"{one.label}: hit ratio / loads per token / tokens/s",
                f"{100 * one.hit_ratio:.1f} % / {one.loads_per_token:.2f} / {speed}",
            ),
        ]
        if one.routing is not None:
            shares = f"{100 * one.routing.altered_share:.1f} % / {100 * one.routing.dropped_share:.1f} %"
            rows.append((f"{one.label}: choices altered / dropped", shares))
        if one.low_share is not None:
            rows.append((f"{one.label}: served by low copies", f"{100 * one.low_share:.1f} %"))
    return rows

"""Watching a policy's hooks, interpreted: what they return, what they write, what they raise."""

import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from policies.cache_state import PINNED, RESIDENT, CacheState
from policies.eviction.base import EvictionPolicy
from policies.eviction.ordered import Ordered
from policies.fields import Policy
from policies.registry import hooks

T = TypeVar("T")
Hook = Callable[..., object]


class Violation(BaseException):
    """A rule is broken. Not an Exception: a policy that catches everything shall not catch this."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def keeps_order(policy: type[Policy]) -> bool:
    """Whether the policy finds its victims by `Ordered`."""
    return issubclass(policy, Ordered) and policy.victim is Ordered.victim


def read_only(value: T) -> T:
    """A view of an array that cannot be written to; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    view = value.view()
    view.flags.writeable = False
    return view


def watch(policy: Policy, base: type[Policy], cache: CacheState) -> None:
    """Replace the hooks of an interpreted policy by watched ones. `cache` is the state that it decides for."""
    shown = CacheState._make(map(read_only, cache))
    own = vars(policy)
    for shared in ("size", "last_use"):
        own[shared] = read_only(own[shared])
    expected: dict[str, object] = {}
    for name in hooks(base):
        own[name] = _watched(policy, name, cache, shown, expected)
    expected.update(own)


def _watched(policy: Policy, name: str, cache: CacheState, shown: CacheState, expected: dict[str, object]) -> Hook:
    hook: Hook = getattr(policy, name)

    def call(*arguments: object) -> object:
        given = list(arguments)
        if name == "victim":
            given[0] = shown
        elif name in ("observe", "suggest"):
            given[1] = read_only(given[1])
        try:
            with np.errstate(all="ignore"):
                result = hook(*given)
        except Exception as error:
            raise explain(error, name, policy) from None
        check_fields(policy, name, expected)
        if name in CHECKS:
            CHECKS[name](result, policy, *arguments)
        return result

    return call


def explain(error: Exception, name: str, policy: Policy) -> Violation:
    """The rule that an exception breaks, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    where = f"{name}()" + (f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else "")
    if isinstance(error, IndexError):
        return Violation("bounds", f"{where}: {error}")
    if isinstance(error, AttributeError) and error.obj is policy:
        return Violation("state", f"{where}: reads self.{error.name}, which is not declared")
    if isinstance(error, ValueError) and "read-only" in str(error):
        return Violation("state", f"{where}: writes to an array that the policy may only read")
    if isinstance(error, AttributeError) and "can't set" in str(error):
        return Violation("state", f"{where}: assigns to a field of the cache, which the policy may only read")
    return Violation("runs", f"{where}: {type(error).__name__}: {error}")


def check_fields(policy: Policy, name: str, expected: dict[str, object]) -> None:
    """Raise Violation where a hook wrote anything of the policy but elements of declared arrays."""
    for field, value in vars(policy).items():
        if field in expected and expected[field] is value:
            continue
        if field not in expected:
            mend = f"declare {field} = scalar(...), per_expert(...) or per_group(...)"
            raise Violation("state", f"{name}() writes self.{field}, which is not declared: {mend}")
        if isinstance(expected[field], np.ndarray):
            mend = f"write to its elements, self.{field}[...] = ..."
        else:
            mend = "it is a constant; keep what changes in a scalar(...)"
        raise Violation("state", f"{name}() assigns to self.{field} as a whole: {mend}")


def _check_victim(
    victim: object, policy: EvictionPolicy, cache: CacheState, group: int, incoming: int, now: int, signal: float
) -> None:
    if keeps_order(type(policy)):
        meant = EvictionPolicy.victim(policy, cache, group, incoming, now, signal)
        if meant != victim:
            mend = "a rank may change in hooks alone, each of which tells settle() of it"
            raise Violation("order", f"victim() for expert {incoming} found {victim}, but {meant} ranks least: {mend}")
    if not isinstance(victim, int | np.integer) or isinstance(victim, bool):
        raise Violation("victims", f"victim() returned {victim!r}, not a whole number")
    if victim == -1:
        return
    said = f"victim() for expert {incoming} returned {victim}"
    if not 0 <= victim < len(cache.place):
        raise Violation("victims", f"{said}, which is no expert's key (0 to {len(cache.place) - 1}, or -1 for none)")
    if cache.place[victim] & PINNED:
        raise Violation("victims", f"{said}, which is pinned")
    if not cache.place[victim] & RESIDENT:
        raise Violation("victims", f"{said}, which is not in the cache")
    if cache.group_of[victim // cache.experts] != group:
        raise Violation("victims", f"{said}, which is resident in another group than {group}")
    if cache.seen[victim] == now and not policy.bound:
        mend = "pass over experts with cache.seen[expert] == now"
        raise Violation("demand", f"{said}, which the same visit demands: {mend}")


def _check_rank(rank: object, policy: Policy, expert: int, group: int, now: int) -> None:
    if not isinstance(rank, int | float | np.integer | np.floating | np.bool_) or math.isnan(rank):
        raise Violation("runs", f"rank() of expert {expert} returned {rank!r}, which cannot be compared")


def _check_suggestions(count: object, policy: Policy, target: int, hint: np.ndarray, out: np.ndarray) -> None:
    if not isinstance(count, int | np.integer) or isinstance(count, bool):
        raise Violation("suggestions", f"suggest() returned {count!r}, not how many it suggests")
    if not 0 <= count <= len(out):
        raise Violation("suggestions", f"suggest() returned {count}, but there is room for {len(out)} suggestions")
    first = target * policy.experts
    for expert in out[:count]:
        if not first <= expert < first + policy.experts:
            mend = f"its keys are {first} to {first + policy.experts - 1}"
            raise Violation("suggestions", f"suggest() named {expert}, no expert of target layer {target}: {mend}")


def _check_answer(answer: object, policy: Policy, expert: int, group: int, now: int, signal: float) -> None:
    if not isinstance(answer, bool | np.bool_):
        raise Violation("answers", f"admits() of expert {expert} returned {answer!r}: say True or False")


CHECKS: dict[str, Hook] = {
    **{"victim": _check_victim, "rank": _check_rank, "suggest": _check_suggestions, "admits": _check_answer}
}
"""What is asked of what a hook returns: called with that, the policy, and what the hook was called with."""

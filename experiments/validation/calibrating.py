"""Measuring this machine with a model of its own, which is gone before the next one is loaded."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan, PlacementPlan
from tracekit.errors import CapacityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAPACITIES = ("75%/layer", "25%/layer")


def calibration_plans(plan: Plan) -> list[Plan]:
    """Plans to calibrate by, the first that fits: the same policies, whose own work costs time, with another cache, in
    which nothing is pinned, and one copy of each expert."""
    return [
        plan.replace(cache=CachePlan(capacity=capacity), placement=PlacementPlan(), precision=None)
        for capacity in (*CAPACITIES, plan.cache.capacity)
    ]


def measured_here(
    load: "Callable[[Plan], PreTrainedModel]", plan: Plan, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> HardwareProfile:
    """The profile of this machine by a model that `load` makes, and that is freed again. Raises TracekitError."""
    from engine.runtime.calibration.engine_costs import calibrate
    from engine.runtime.memory import release
    from engine.runtime.offload_state import offloaded

    *others, own = calibration_plans(plan)
    model = next(filter(None, (_unless_too_large(load, other) for other in others)), None) or load(own)
    try:
        with offloaded(model):
            return calibrate(model, prompts, max_new_tokens=max_new_tokens)
    finally:
        del model
        release()


def _unless_too_large(load: "Callable[[Plan], PreTrainedModel]", plan: Plan) -> "PreTrainedModel | None":
    try:
        return load(plan)
    except CapacityError:
        return None

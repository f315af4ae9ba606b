"""A plan as the nearest setting of another engine, and line by line what could not be carried over.

What each engine is told is in `engine.plan.foreign_engines`; here is what all have in common.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.plan.capacity import Capacity
from engine.plan.foreign_engines import ENGINES, Asked, Sized
from engine.plan.plan import Plan
from engine.plan.tables import KEEP
from tracekit.errors import PlanError, did_you_mean


class Export(NamedTuple):
    """`arguments` for the engine's command, in pairs; `notes` on what they mean; `lost`: what they do not say."""

    engine: str
    arguments: list[tuple[str, str]]
    notes: list[str]
    lost: list[str]

    @property
    def command(self) -> str:
        """The arguments as a shell reads them."""
        import shlex

        return " ".join(shlex.quote(word) for pair in self.arguments for word in pair if word)


def export(
    plan: Plan,
    model: Sized,
    engine: str,
    *,
    counts: str | None = None,
    pinned: Mapping[int, Sequence[int]] | None = None,
) -> Export:
    """`plan` for one of `ENGINES`.

    `counts` is the path of a file of counts, where one is written beside (`ranked`). `pinned` are the experts that the
    plan pins, by MoE layer from 0; None: none, or whole layers that the plan names itself.

    Raises PlanError for an engine that is not known, or a capacity that no number of slots follows from.
    """
    if engine not in ENGINES:
        raise PlanError(f"no export to {engine!r}{did_you_mean(engine, ENGINES)}; known: {', '.join(ENGINES)}")
    asked = Asked.of(plan, model, slots_per_layer(plan, model), counts, pinned)
    arguments, notes, lost = ENGINES[engine](asked)
    return Export(engine, arguments, notes, [*lost, *_lost_anywhere(asked, engine)])


def slots_per_layer(plan: Plan, model: Sized) -> float:
    """Experts of a layer that the device holds: a mean, where the capacity is for all layers."""
    layers = len(model.moe_layers)
    capacity: Capacity = plan.capacity
    groups, sizes = capacity.groups([model.experts] * layers, model.experts, [model.expert_bytes] * layers)
    return min(float(sum(groups)) / float(sizes[0]) / layers, float(model.experts))


def _lost_anywhere(asked: Asked, engine: str) -> list[str]:
    plan, lost = asked.plan, []
    if plan.cache.split is not None or not asked.only_whole_layers_differ:
        how = plan.cache.capacity if plan.cache.split is None else f"split by {plan.cache.split}"
        lost.append(f"capacity by layer ({how}): {engine} is told how much in all")
    if plan.placement.by is not None or plan.placement.detect is not None:
        lost.append(f"placement by domain: {engine} pins the same for every request")
    if plan.cache.warm != KEEP:
        lost.append(f"cache.warm {plan.cache.warm}: {engine} begins with nothing and keeps what it holds")
    if plan.miss.where != "copy" and engine in ("vllm", "sglang"):
        lost.append(f"misses {plan.miss.where}: {engine} reads every missing expert over the link")
    if plan.admission.limited:
        limit = "" if plan.admission.per_step is None else f", {plan.admission.per_step} per step"
        lost.append(f"admission {plan.admission.policy}{limit}: {engine} is not told which misses to keep")
    if plan.prefetch.predictor != "none":
        lost.append(f"prefetch {plan.prefetch.predictor}: {engine} loads no expert ahead")
    if plan.routing.alters:
        lost.append(f"routing {plan.routing.policy}: {engine} computes what the gates chose")
    if plan.serve.host == "disk":
        own = "maps the file, and the system keeps what it last read" if engine == "llama.cpp" else "reads all at once"
        lost.append(f"serve.host disk: {engine} {own}")
    if plan.precision is not None:
        lost.append(f"precision {plan.precision.low}: {engine} keeps each expert in one format")
    if plan.weights.attention is not None:
        lost.append(f"weights.attention {plan.weights.attention}: choose a checkpoint whose attention is stored so")
    if re.search(r"hqq", plan.weights.experts or "") and engine != "llama.cpp":
        lost.append(
            f"weights {plan.weights.experts}: {engine} does not read HQQ; choose a checkpoint of about its size"
        )
    return lost

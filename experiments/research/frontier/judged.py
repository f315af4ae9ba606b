"""Every way's loss and speed: loss by text, speed on modelled machines by the routing that its own pass made."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan, EvictionPlan, RoutingPlan
from engine.replay.bounds import find_bounds
from engine.replay.memory import device_memory
from engine.replay.passes import Replayed, run
from engine.replay.replay import replay
from engine.replay.setting import Setting
from engine.shapes import load_shape
from experiments.quality.measurement import Estimate, estimate
from experiments.quality.quality_key import looks_at_cache
from experiments.research.frontier.closed_loop import Passed, passed
from experiments.research.frontier.ways import BASE, SHAPES, SLOTS, Way, ways
from policies.events import ADMIT, HOST, LOAD, PREFETCH
from tracekit.recorder.prompts import Prompt
from tracekit.trace import Trace

MACHINES = ("t4", "rtx4090", "h100")
LEVEL = 0.95


class Judged(NamedTuple):
    """One way.

    `loss` is a share of the unaltered model's nats, `beyond` what of it is more than the format BASE loses by itself,
    paired by text; `perplexity` a share of the unaltered model's, `kl` in nats a token. `hits` and `loads` a token are
    the closed loop's, `first` the loads a token that a replay of the unaltered model's routing foresees; `altered` and
    `dropped` shares of choices; `speed` [machines] tokens/s, `bytes` on the device.
    """

    name: str
    kind: str
    loss: Estimate
    beyond: Estimate
    perplexity: float
    kl: float
    agreed: float
    hits: float
    loads: float
    first: float
    altered: float
    dropped: float
    speed: list[float]
    bytes: int


class Bound(NamedTuple):
    """Of the gates' own choices in experts of the format BASE: what Belady's decisions with bypassing hit, load a token
    and give in tokens/s on each machine, and the bound on tokens/s, which no plan passes that leaves these choices and
    the format as they are, however it overlaps copies with computing."""

    hits: float
    loads: float
    served: list[float]
    speed: list[float]


def judge_all(
    model: str, checkpoint: Path, texts: Sequence[Prompt], folder: Path, say: Callable[[str], object]
) -> Iterator[tuple[int, Bound, list[Judged]]]:
    """Every way at each number of slots of a layer; what was passed before lies in `folder`."""
    said: list[Tensor] = []
    plain = passed(checkpoint, Plan("100%/layer"), texts, folder / f"{model}.trace", keep=said.extend)
    base = passed(checkpoint, Plan("100%/layer", weights=BASE), texts, folder / f"{model}-all-{BASE}.trace", said)
    for slots in SLOTS[model]:
        found = []
        for name, way in ways(model, slots).items():
            say(f"{model}, {slots} slots: {name}")
            plan, there = way.plan, str(slots)
            if not looks_at_cache(way.plan):  # says the same whatever is there
                plan, there = way.plan.replace(cache=CachePlan(capacity="100%/layer")), "all"
            path = folder / f"{model}-{there}-{name.replace(',', '').replace(' ', '-')}.trace"
            found.append(judged(model, name, way, (plain, base), passed(checkpoint, plan, texts, path, said)))
        yield slots, bound(model, ways(model, slots)[BASE].plan, plain.trace), found


def judged(model: str, name: str, way: Way, others: tuple[Passed, Passed], own: Passed) -> Judged:
    """One way's figures, against those of the `others`: the unaltered model, and the format BASE by itself."""
    plain, base = others
    tokens = np.bincount(own.trace.request).astype(np.float64) - 1
    done, settings = timed(model, way.plan, own.trace)
    kinds = done[0].step_kinds.sum(axis=0)
    copies = int(kinds[LOAD : PREFETCH + 1].sum())
    return Judged(
        name=name,
        kind=way.kind,
        loss=estimate(own.nats - plain.nats, plain.nats, LEVEL),
        beyond=estimate(own.nats - base.nats, plain.nats, LEVEL),
        perplexity=math.expm1(float((own.nats - plain.nats).sum() / tokens.sum())),
        kl=float(own.divergence.sum() / tokens.sum()),
        agreed=float(own.agreed.sum() / tokens.sum()),
        hits=1 - float(kinds[HOST : ADMIT + 1].sum() / kinds[: ADMIT + 1].sum()),
        loads=copies / own.trace.tokens,
        first=first_order(model, way.plan, plain.trace),
        altered=own.altered,
        dropped=own.dropped,
        speed=speeds(own.trace, done, settings),
        bytes=device_memory(settings[0]).total,
    )


def timed(model: str, plan: Plan, trace: Trace) -> tuple[list[Replayed], list[Setting]]:
    """A pass over the routing that the plan made, which its routing policy is not asked about again."""
    served = plan.replace(routing=RoutingPlan())
    shape = load_shape(SHAPES[model])
    settings = [Setting.of(trace.manifest, served, load_hardware(name), shape, reshape="sizes") for name in MACHINES]
    return run(trace, settings[0].spec, [one.target for one in settings]), settings


def speeds(trace: Trace, done: Sequence[Replayed], settings: Sequence[Setting]) -> list[float]:
    """Tokens/s of each pass."""
    times = (float(one.step_ns.sum()) * setting.scale for one, setting in zip(done, settings, strict=True))
    return [trace.tokens * 1e9 / nanoseconds for nanoseconds in times]


def first_order(model: str, plan: Plan, trace: Trace) -> float:
    """Loads a token that are foreseen from the unaltered model's routing and gates."""
    found = replay(trace, plan, model_shape=SHAPES[model], reshape="sizes", bounds=False)
    return (found.misses + found.prefetches) / trace.tokens


def bound(model: str, plan: Plan, trace: Trace) -> Bound:
    """What no plan beats that leaves routing and format alone."""
    done, settings = timed(model, plan.replace(eviction=EvictionPlan(policy="belady-bypass")), trace)
    found = [find_bounds(trace, setting, one) for setting, one in zip(settings, done, strict=True)]
    return Bound(
        hits=found[0].hit_ratio or 0.0,
        loads=found[0].copies / trace.tokens,
        served=speeds(trace, done, settings),
        speed=[one.best_tokens_per_second or 0.0 for one in found],
    )

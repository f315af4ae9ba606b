"""A race of plans on ever longer beginnings of one trace.

Decisions are taken once for all plans that decide alike, whatever format and place of experts they are timed
with; what plans share of a beginning (demand, lookahead) is made once, as in a study.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

from engine.hardware import HardwareProfile
from engine.plan.misses import MissPlan
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan, EvictionPlan, PrefetchPlan
from engine.replay.memory import fit_capacity, fits, load_of, most_slots
from engine.replay.passes import Replayed, Steps, run
from engine.replay.setting import Setting
from engine.shapes import ModelShape
from experiments.recommend.residence import HostMemory, Residence, residences
from experiments.study.cells import Routing
from experiments.study.shared import SharedRoutings
from policies.eviction.base import EvictionPolicy
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tracekit.errors import CapacityError, PlanError
from tracekit.prefix import prefix_steps
from tracekit.priors import is_prior
from tracekit.rows import DECODE
from tracekit.trace import Trace

LEAST_STEPS = 64
"""Decode steps of a beginning, at least."""
MOST_LOOKED_AT = 500_000_000
"""Slots that a policy looks at for the victims of a whole trace, at most: a second or two, more with prefetching."""
NOT_OFFERED = {"static", "learned", "popular", "learned-adaptive", "random", "fifo", "clock", "lfu-perfect"}
"""They need a profile or a fitted file of their own, or are for comparison."""


CONTEXT = 8192
"""Tokens of a sequence that memory is kept for where nobody says, or the trace's longest if that is more."""


class Length(NamedTuple):
    """How much of a trace is replayed: this share of its decode steps, of long ones about so many lookups."""

    share: float
    lookups: int


class Entrant(NamedTuple):
    """A plan, and where its experts lie."""

    plan: Plan
    residence: Residence


@dataclass(frozen=True, slots=True, eq=False)
class Timed:
    """An entrant replayed."""

    entrant: Entrant
    setting: Setting
    done: Replayed

    @property
    def speed(self) -> float:
        """Decode tokens per second."""
        own = self.done.phase == DECODE
        seconds = float(self.done.step_ns[own].sum()) * self.setting.scale / 1e9
        return float(self.done.tokens[DECODE]) / seconds if seconds else 0.0


class Race:
    """Plans replayed on beginnings of one trace, on one machine; `batch`: as if so many requests came together."""

    def __init__(
        self,
        trace: Trace,
        machine: HardwareProfile,
        shape: ModelShape | None,
        *,
        batch: int | None = None,
        host: HostMemory | None = None,
        reshape: str | None = None,
        workers: int = 2,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.machine, self.shape, self.workers, self.progress = machine, shape, workers, progress
        self.reshape, self.host = reshape, host or HostMemory.of(machine)
        as_recorded = batch is None or batch == Steps.of(trace).sequences
        self.routing = Routing(str(trace.path), None if as_recorded else batch, trace.digest)
        self.trace = trace if as_recorded else self.routing.open()
        self.steps = Steps.of(self.trace)
        self.tried = 0
        self._shared = SharedRoutings()
        self._took: dict[tuple[str, str, int], float] = {}

    def kept_context(self, asked: int | None) -> int | None:
        """Tokens of a sequence that memory is kept for: what is asked, else `CONTEXT`; None where no shape says what
        they take."""
        if asked is not None or self.shape is None:
            return asked
        return max(CONTEXT, self.steps.longest)

    @property
    def lookups(self) -> int:
        """Experts chosen in the whole trace."""
        return self.trace.tokens * self.trace.layers * self.trace.top_k

    def capacities(self, plan: Plan) -> list[Entrant]:
        """What fits: so many slots of each layer; and what all layers together have room for, in one cache, and where
        that is more also split evenly, so that some layers have one slot more. CapacityError where nothing does."""
        manifest, load = self.trace.manifest, load_of(plan, self.steps)
        reasons = []
        for place in residences(plan, manifest, self.shape, self.machine, self.host):
            try:
                fitted = fit_capacity(plan, manifest, place.machine, self.shape, load, reshape=self.reshape)
            except CapacityError as error:
                reasons.append(error)
                continue
            slots, layers = int(fitted.capacity.amount), len(manifest.experts_per_layer)
            ways = []
            if self.shape is None or len(self.shape.moe_layers) == layers:
                most = most_slots(fitted, manifest, place.machine, self.shape, load, reshape=self.reshape)
                ways = [CachePlan(capacity=str(most))]
                ways += [CachePlan(capacity=str(most), split="even")] if most > slots * layers else []
            return [Entrant(one, place) for one in (fitted, *(fitted.replace(cache=way) for way in ways))]
        raise reasons[0]

    def with_policies(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Each with every policy, but for those that would look at slots for longer than all else takes."""
        names = [name for name in EVICTION if name not in NOT_OFFERED and not eviction_policy(name).bound]
        found = []
        for one in entrants:
            looked_at = self.lookups * int(one.plan.capacity.amount)
            for name in names:
                if looked_at <= MOST_LOOKED_AT or not _looks_at_all(name):
                    found.append(one._replace(plan=one.plan.replace(eviction=EvictionPlan(policy=name))))
        return found

    def with_prefetching(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Each as it is, and with every prefetcher: few or many suggestions, one layer ahead or two.

        Not on a prior, whose layers are independent: what a prefetcher wins there is chance.
        """
        return [*entrants, *self.prefetching(entrants, [name for name in PREFETCH if name not in NOT_OFFERED])]

    def looking_ahead(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Each with the prefetchers that the gate tells. They are so often right that beside a lane the fastest cache
        may be one that is too small to hit, and that is among the slowest without them."""
        return self.prefetching(entrants, [name for name in PREFETCH if prefetcher(name).reads == "lookahead"])

    def prefetching(self, entrants: Sequence[Entrant], names: Sequence[str]) -> list[Entrant]:
        """Each with each of these prefetchers."""
        if is_prior(self.trace):
            return []
        top_k = self.trace.manifest.top_k
        found: list[Entrant] = []
        for name in names:
            if name == "none" or prefetcher(name).bound:
                continue
            for distance in self.depths() if name.startswith("gate") else [1]:
                for count in sorted({max(1, top_k // 2), top_k}):
                    wanted = PrefetchPlan(predictor=name, distance=distance, count=count, staging=max(4, 2 * top_k))
                    found += [one._replace(plan=one.plan.replace(prefetch=wanted)) for one in entrants]
        return found

    def depths(self) -> list[int]:
        """Distances that the trace has the gate's lookahead for."""
        kinds = self.trace.manifest.dense_kinds()
        return sorted(int(kind.removeprefix("lookahead-")) for kind in kinds if kind.startswith("lookahead-"))[:2]

    def with_lanes(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Each as it is; and, if the host can, with misses on it where that is sooner, also in `smaller` caches."""
        if self.machine.cpu is None:
            return list(entrants)
        lanes = [one._replace(plan=one.plan.replace(miss=MissPlan(where="auto"))) for one in entrants]
        return [*entrants, *lanes, *self.smaller(lanes)]

    @staticmethod
    def smaller(entrants: Sequence[Entrant]) -> list[Entrant]:
        """Those with misses on the host and `lru`, in smaller caches, by powers of two.

        A smaller cache copies less, and the link is free for what is waited for.
        """
        return [
            one._replace(plan=one.plan.replace(cache=CachePlan(capacity=f"{1 << power}/layer")))
            for one in entrants
            if one.plan.miss.where != "copy" and one.plan.eviction.policy == "lru" and one.plan.capacity.per_layer
            for power in range((int(one.plan.capacity.amount) - 1).bit_length())
        ]

    @staticmethod
    def with_waiting(entrants: Sequence[Entrant]) -> list[Entrant]:
        """Those with misses on the host without, too: on a longer trace the cache may be worth more."""
        lanes = [one for one in entrants if one.plan.miss.where != "copy"]
        waiting = [one._replace(plan=one.plan.replace(miss=MissPlan())) for one in lanes]
        return [*entrants, *(one for one in waiting if one not in entrants)]

    def best(self, entrants: Sequence[Entrant], length: Length, keep: int) -> list[Entrant]:
        """The best of each format on a beginning of the trace."""
        ranked = sorted(self.timed(entrants, length), key=lambda one: -one.speed)
        kept: dict[str | None, list[Entrant]] = {}
        for one in ranked:
            group = kept.setdefault(one.entrant.plan.weights.experts, [])
            if len(group) < keep:
                group.append(one.entrant)
        return [one for group in kept.values() for one in group]

    def timed(self, entrants: Sequence[Entrant], length: Length | None = None) -> list[Timed]:
        """Those that fit, and that the trace can answer for; None: on all of it."""
        routing = self.routing
        if length is not None:
            share = min(length.share, length.lookups / max(self.lookups, 1))
            routing = replace(routing, steps=prefix_steps(self.trace, share, LEAST_STEPS))
        together: dict[tuple[str, bytes], list[tuple[Entrant, Setting]]] = {}
        for one in entrants:
            setting = self.setting(one)
            if fits(setting):
                together.setdefault(setting.spec.meaning, []).append((one, setting))
            else:
                self._count(1)
        groups = list(together.values())
        # What took longest before begins first, lest it begin last and keep all other threads waiting.
        order = sorted(range(len(groups)), key=lambda place: -self._took.get(_kind(groups[place]), 0.0))
        with ThreadPoolExecutor(self.workers) as pool:
            begun = {place: pool.submit(self._replayed, routing, groups[place]) for place in order}
            found = [begun[place].result() for place in range(len(groups))]
        return [one for group in found for one in group]

    def setting(self, one: Entrant) -> Setting:
        load = load_of(one.plan, self.steps)
        manifest, machine = self.trace.manifest, one.residence.machine
        return Setting.of(manifest, one.plan, machine, self.shape, reshape=self.reshape, load=load)

    def _replayed(self, routing: Routing, group: Sequence[tuple[Entrant, Setting]]) -> list[Timed]:
        known, spec, begun = self._shared.of(routing), group[0][1].spec, perf_counter()
        try:
            done = run(
                known.trace,
                spec,
                [setting.target for _, setting in group],
                steps=known.requests.steps,
                demands=known.demands,
                hints=known.hints(spec),
            )
        except PlanError:  # it asks for what was not recorded: gate weights, logits
            done = []
        self._took[_kind(group)] = (perf_counter() - begun) / max(known.trace.tokens, 1)
        self._count(len(group))
        return [Timed(one, setting, each) for (one, setting), each in zip(group, done, strict=False)]

    def _count(self, plans: int) -> None:
        self.tried += plans
        if self.progress is not None:
            self.progress(plans)


def _looks_at_all(policy: str) -> bool:
    """Whether a policy asks every slot for each victim."""
    return eviction_policy(policy).victim is EvictionPolicy.victim


def _kind(group: Sequence[tuple[Entrant, Setting]]) -> tuple[str, str, int]:
    """Equal for plans whose decisions take about as long."""
    plan = group[0][0].plan
    return plan.eviction.policy, plan.prefetch.predictor, plan.prefetch.count

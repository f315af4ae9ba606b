"""Plans on many machines: each is decided once, on beginnings of one routing, and timed on every machine that asks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.memory import fits
from engine.replay.passes import Steps, run
from engine.replay.setting import Setting
from engine.shapes import ModelShape
from experiments.recommend.race import LEAST_STEPS, Entrant, Length, Race, Timed
from experiments.recommend.residence import HostMemory, residences
from experiments.study.cells import Routing
from experiments.study.shared import SharedRoutings
from tracekit.errors import CapacityError, PlanError
from tracekit.prefix import prefix_steps
from tracekit.rows import DECODE
from tracekit.trace import Trace

FIRST, SECOND = Length(1 / 16, 500_000), Length(1 / 4, 2_000_000)
"""Of the first two rounds, and of the third: longer beginnings tell plans apart no better."""
LEFT = (3, 3, 1)
"""Plans of each machine and format that are left after each round; all that are left run on every machine."""


class Field:
    """Machines, told apart by their names, a model, and the routing that plans are timed on.

    `batch`: as if so many requests came together. `context`: decode steps read so many tokens of every sequence,
    whatever the trace's own positions, and memory holds them (None: as `Race.kept_context` says).
    """

    def __init__(
        self,
        trace: Trace,
        machines: Sequence[HardwareProfile],
        shape: ModelShape | None,
        *,
        reshape: str | None = None,
        context: int | None = None,
        batch: int | None = None,
        host_memory: int | None = None,
        disk_speed: int | None = None,
        workers: int = 2,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.races = {
            one.name: Race(
                trace, one, shape, batch=batch, reshape=reshape, host=HostMemory.of(one, host_memory, disk_speed)
            )
            for one in machines
        }
        self.shape, self.context, self.batch, self.workers, self.progress = shape, context, batch, workers, progress
        self._any = next(iter(self.races.values()))
        kept = self._any.kept_context(context)
        self.serve = {key: value for key, value in (("context", kept), ("batch", batch)) if value is not None}
        self.trace, self.routing, self.steps = self._any.trace, self._any.routing, self._any.steps
        self.tried = 0
        self._shared = SharedRoutings()

    def finalists(self, formats: Sequence[str]) -> tuple[list[Plan], dict[str, str]]:
        """The plans that are left of a race on each machine; by machine, why nothing fits where nothing does."""
        refused: dict[str, str] = {}
        field: list[Entrant] = []
        for name, race in self.races.items():
            fitting: list[Entrant] = []
            for word in formats:
                try:
                    fitting += race.capacities(Plan("auto", weights=word, serve=self.serve))
                except CapacityError as error:
                    refused[name] = str(error)
            if fitting:
                refused.pop(name, None)
            field += race.with_lanes(race.with_policies(fitting))
        field = self.best(field, FIRST, LEFT[0])
        more: list[Entrant] = []
        for name, race in self.races.items():
            more += race.with_prefetching([one for one in field if one.residence.machine.name == name])
        field = self.best(more, FIRST, LEFT[1])
        field = Race.with_waiting(self.best(field, SECOND, LEFT[2]))
        return list({repr(one.plan.to_dict()): one.plan for one in field}.values()), refused

    def best(self, entrants: Sequence[Entrant], length: Length, keep: int) -> list[Entrant]:
        """The fastest of each machine and format on a beginning of the routing."""
        kept: dict[tuple[str, str | None], list[Entrant]] = {}
        working = self.timed(entrants, self.beginning(length))
        for one in sorted(working, key=lambda one: -one.speed):
            plan, place = one.entrant
            group = kept.setdefault((place.machine.name, plan.weights.experts), [])
            if len(group) < keep:
                group.append(one.entrant)
        return [one for group in kept.values() for one in group]

    def everywhere(self, plans: Sequence[Plan], trace: Trace | None = None) -> list[Timed]:
        """Every plan on the whole routing, or on another trace of that model, on every machine that it fits."""
        routing = self.routing
        if trace is not None:
            routing = Race(trace, self._any.machine, self.shape, batch=self.batch).routing
        return self.timed([one for plan in plans for one in self._places(plan)], routing)

    def _places(self, plan: Plan) -> list[Entrant]:
        found = []
        for race in self.races.values():
            try:
                places = residences(plan, self.trace.manifest, self.shape, race.machine, race.host)
            except CapacityError:
                continue
            found += [Entrant(plan, place) for place in places]
        return found

    def beginning(self, length: Length) -> Routing:
        """The first steps of the routing."""
        share = min(length.share, length.lookups / max(self._any.lookups, 1))
        return replace(self.routing, steps=prefix_steps(self.trace, share, LEAST_STEPS))

    def timed(self, entrants: Sequence[Entrant], routing: Routing) -> list[Timed]:
        """Those that fit, and that the routing can answer for."""
        alike: dict[tuple[str, bytes], list[tuple[Entrant, Setting]]] = {}
        for one in entrants:
            setting = self._setting(one)
            if setting is not None:
                alike.setdefault(setting.spec.meaning, []).append((one, setting))

        def together(group: list[tuple[Entrant, Setting]]) -> list[Timed]:
            known, spec = self._shared.of(routing), group[0][1].spec
            targets = [setting.target for _, setting in group]
            steps = self.served(known.requests.steps)
            try:
                passes = run(known.trace, spec, targets, steps=steps, demands=known.demands, hints=known.hints(spec))
            except PlanError:  # it asks for what was not recorded: gate weights, logits
                passes = []
            self.tried += len(group)
            if self.progress is not None:
                self.progress(len(group))
            return [Timed(one, setting, done) for (one, setting), done in zip(group, passes, strict=False)]

        with ThreadPoolExecutor(self.workers) as pool:
            return [one for group in pool.map(together, alike.values()) for one in group]

    def served(self, steps: Steps) -> Steps:
        """The steps of a trace, decoding at the stated context."""
        if self.context is None:
            return steps
        tokens = np.diff(steps.starts).astype(np.int64)
        return replace(steps, context=np.where(steps.phase == DECODE, tokens * self.context, steps.context))

    def _setting(self, one: Entrant) -> Setting | None:
        """None where the plan does not fit, or asks for a processor that the profile does not have."""
        machine = one.residence.machine
        if one.plan.miss.where != "copy" and machine.cpu is None:
            return None
        setting = self.races[machine.name].setting(one)
        return setting if fits(setting) else None

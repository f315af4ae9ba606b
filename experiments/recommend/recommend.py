"""Which plan to run: formats, capacities, policies, prefetchers, lane and disk in a machine's memory, on one routing.

The capacity of each format is what fits beside all else (`engine.replay.memory`). What is left is a race within each
format on ever longer beginnings of the trace: policies with misses copied or on the host, the best of them with every
prefetcher, the best of those again. Who is left is replayed whole, so the figures are those of a replay.
"""

from collections.abc import Callable, Mapping, Sequence

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.replay.advice import DecodeWork, advice, fit_warnings
from engine.replay.estimates import find_estimates
from engine.replay.summary import time_of
from engine.shapes import ModelShape
from experiments.recommend.choice import Choice, Recommendation
from experiments.recommend.race import Entrant, Length, Race, Timed
from experiments.recommend.residence import HostMemory
from experiments.statistics.request_shares import RequestShares
from experiments.statistics.speeds import speed_interval
from tracekit.errors import CapacityError, StudyError
from tracekit.stats.independence import looks_independent
from tracekit.trace import Trace

FORMATS = ("bf16", "hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit")
"""What the engine stores; `gguf`'s and others only if asked for."""
FIRST, SECOND = Length(1 / 16, 300_000), Length(1 / 4, 3_000_000)
"""Beginnings of the trace on which plans race first."""
LEFT, LEFT_OF_LONG = (3, 4, 2), (3, 3, 1)
"""Plans of each format that are left after each round; the second of a trace beyond `LONG` lookups, whose beginnings
are long."""
LONG = 10_000_000
SHOWN = 5


def recommend(
    trace: Trace,
    machine: HardwareProfile,
    shape: ModelShape | None = None,
    *,
    context: int | None = None,
    batch: int | None = None,
    formats: Sequence[str] = FORMATS,
    host: HostMemory | None = None,
    quality: Mapping[str, float] | None = None,
    quality_loss: float | None = None,
    reshape: str | None = None,
    workers: int = 2,
    progress: Callable[[int], object] | None = None,
) -> Recommendation:
    """The best plan of each format for a machine, by decode tokens per second.

    Args:
        trace: routing of the model, or of one with as many layers and experts, as recorded.
        shape: the model's sizes; None takes those of the trace.
        reshape: as `replay` takes it, where the trace routes otherwise than a model of that shape.
        context, batch: what is served: tokens of each sequence (None: `race.CONTEXT`, where the shape says what they
            take), sequences (None: as in the trace). With a batch the trace's requests are replayed as if so many of
            them were decoded together.
        host: what host memory holds, and the disk behind it; None: what the machine's profile says.
        quality: the loss of each format of which one is known, by its whole name (`experiments.quality.losses`).
        quality_loss: formats that lose more are left out, and those of which nothing is known, as in a study; what is
            not quantised loses nothing.
        progress: called with the number of plans that were just replayed.

    Raises StudyError where no format fits, and what a replay raises.
    """
    known = quality or {}
    race = Race(trace, machine, shape, batch=batch, host=host, reshape=reshape, workers=workers, progress=progress)
    context = race.kept_context(context)
    serve = {key: value for key, value in (("context", context), ("batch", batch)) if value is not None}
    refused: dict[str, str] = {}
    field: list[Entrant] = []
    for word in formats:
        if quality_loss is not None and (why := _too_lossy(WeightFormat.parse(word), known, quality_loss)):
            refused[word] = why
            continue
        try:
            field += race.capacities(Plan("auto", weights=word, serve=serve))
        except CapacityError as error:
            refused[word] = str(error)
    if not field:
        raise StudyError(f"no format fits {machine.name}: {next(iter(refused.values()), 'none was given')}")
    field = race.with_lanes(race.with_policies(field))
    small = race.smaller(field)
    field = race.best(field, FIRST, LEFT[0])
    left = LEFT if race.lookups <= LONG else LEFT_OF_LONG
    field = race.best([*race.with_prefetching(field), *race.looking_ahead(small)], FIRST, left[1])
    field = race.best(field, SECOND, left[2])
    first: dict[str | None, Timed] = {}
    for one in sorted(race.timed(race.with_waiting(field)), key=lambda one: -one.speed):
        first.setdefault(one.entrant.plan.weights.experts, one)
    if not first:
        raise StudyError(f"{trace.path}: no plan could be replayed on it on {machine.name}")
    shares, independent = RequestShares.of(race.trace), looks_independent(race.trace)
    choices = [
        _choice(race, one, shares, known.get(WeightFormat.parse(str(word)).name), independent)
        for word, one in first.items()
    ]
    return Recommendation(choices[:SHOWN], refused, race.tried)


def _too_lossy(word: WeightFormat, known: Mapping[str, float], most: float) -> str:
    """Why a format is not to be used where no more may be lost; "" if it may."""
    loss = known.get(word.name, None if word.quantised else 0.0)
    if loss is None:
        return "it is not known what it loses: measure it (tracekit quality), or leave out --quality-loss"
    return f"it loses {100 * loss:.1f} %, more than {100 * most:g} %" if loss > most else ""


def _choice(race: Race, timed: Timed, shares: RequestShares, loss: float | None, independent: bool | None) -> Choice:
    trace, setting, done, place = race.trace, timed.setting, timed.done, timed.entrant.residence
    time = time_of(setting, done)
    assert time is not None  # there is a machine
    ends = speed_interval(shares, done.step_ns, time.scale)
    found = advice(trace, setting, DecodeWork.of(done), time, independent=independent) + fit_warnings(setting)
    return Choice(
        plan=place.said_by(timed.entrant.plan, race.machine),
        where=place.where,
        machine=place.machine,
        time=time,
        estimates=find_estimates(setting, done),
        low=None if ends is None else ends[0],
        high=None if ends is None else ends[1],
        quality_loss=loss,
        warnings=[one.text for one in found],
    )

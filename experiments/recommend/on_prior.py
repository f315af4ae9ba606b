"""A recommendation where there is no trace: on routing drawn from a prior (`tracekit.priors`).

Plans race on the likely locality. Those that are left are timed on the least and on the most local known, too: that is
the interval, and nothing of it is the model's own figure.
"""

from typing import Any

from engine.hardware import HardwareProfile
from engine.shapes import ModelShape, load_shape
from experiments.prior import Asked, about, drawn
from experiments.recommend.choice import Recommendation
from experiments.recommend.race import Entrant, Race
from experiments.recommend.recommend import recommend
from experiments.recommend.residence import Residence
from tracekit.priors.family import Level

LIKELY: Level = "likely"


def recommend_on_prior(
    asked: Asked,
    machine: HardwareProfile,
    shape: ModelShape | None,
    *,
    batch: int | None = None,
    workers: int = 2,
    **options: Any,
) -> Recommendation:
    """`recommend` on routing drawn for the model that is `asked`; `low` and `high` are those of the other localities.

    `shape`: the model's sizes; None: those of the model asked. `options` go to `recommend`. Raises what it raises, and
    TraceError for routing that cannot be drawn.
    """
    routed = load_shape(asked.model)
    shape = shape or routed
    with drawn(asked, routed) as traces:
        found = recommend(traces[LIKELY], machine, shape, batch=batch, workers=workers, **options)
        entrants = [Entrant(one.plan, Residence(one.where, one.machine)) for one in found.choices]
        speeds = [[one.tokens_per_second] for one in found.choices]
        for level, trace in traces.items():
            if level == LIKELY:
                continue
            race = Race(trace, machine, shape, batch=batch, workers=workers, reshape=options.get("reshape"))
            timed = race.timed(entrants)
            of_plan = {id(one.entrant): one.speed for one in timed}
            for entrant, known in zip(entrants, speeds, strict=True):
                known.append(of_plan[id(entrant)])
    choices = [one._replace(low=min(own), high=max(own)) for one, own in zip(found.choices, speeds, strict=True)]
    return found._replace(choices=choices, prior=about(asked, routed))

"""Is what `recommend` finds the best there is? Against every plan of the same kinds, replayed whole.

    python -m experiments.research.recommendations mixtral-mini.trace qwen3-moe-mini.trace

prints, for ten settings of format, machine, context and shape, the speed of what was found over that of the best
(`--write` a page). The traces are those that `tracekit demo` records; the last setting's is drawn, of as many layers as
its model, so that caches for all layers together are among its plans. The race was adjusted on other settings.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

from engine.hardware import load_hardware
from engine.plan.misses import MissPlan
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan
from engine.shapes import load_shape
from experiments.recommend import recommend
from experiments.recommend.race import Entrant, Race
from experiments.research.markdown import table
from tracekit.durable import write_synced
from tracekit.synthetic import Recipe, synthesize
from tracekit.trace import Trace

SETTINGS = (  # which of the three traces, shape, machine, context, format
    (0, "mixtral-8x7b", "t4", 8192, "hqq-3bit"),
    (0, "mixtral-8x7b", "rtx4090", 8192, "hqq-8bit"),
    (0, "mixtral-8x7b", "rtx3080m", 8192, "hqq-2bit"),
    (0, "mixtral-8x22b", "a100", 8192, "hqq-8bit"),
    (0, "mixtral-8x22b", "h200", 16384, "bf16"),
    (1, "qwen3-30b-a3b", "rtx3080m", 16384, "bf16"),
    (1, "qwen3-235b-a22b", "rtx4090", 8192, "hqq-4bit"),
    (1, "gpt-oss-20b", "rtx3080m", 8192, "hqq-8bit"),
    (1, "gpt-oss-120b", "rtx3060", 8192, "hqq-4bit"),
    (2, "mixtral-8x7b", "rtx3060", 8192, "hqq-4bit"),
)
DRAWN = Recipe(tokens=1000, layers=32, experts=8, top_k=2, zipf=0.8, persistence=0.3, request_tokens=100, seed=1)
COLUMNS = (
    "model",
    "machine",
    "experts",
    "context",
    "slots",
    "found, tokens/s",
    "best, tokens/s",
    "share",
    "plans tried",
)


class Found(NamedTuple):
    """What was found in a setting, and the best of `plans`."""

    speed: float
    best: float
    slots: str
    tried: int
    plans: int


def every_plan(race: Race, word: str, context: int) -> list[Entrant]:
    """Every policy with every prefetcher in what fits; beside the lane also in smaller caches, by powers of two."""
    fitting = race.capacities(Plan("auto", weights=word, serve={"context": context}))
    found = race.with_prefetching(race.with_policies(fitting))
    if race.machine.cpu is None:
        return found
    slots = int(fitting[0].plan.capacity.amount)
    smaller = [
        fitting[0]._replace(plan=fitting[0].plan.replace(cache=CachePlan(capacity=f"{1 << power}/layer")))
        for power in range((slots - 1).bit_length())
    ]
    lane = MissPlan(where="auto")
    beside = [*found, *race.with_prefetching(race.with_policies(smaller))]
    return [*found, *(one._replace(plan=one.plan.replace(miss=lane)) for one in beside)]


def compared(trace: Trace, shape: str, hardware: str, context: int, word: str) -> Found:
    """One setting."""
    machine, model = load_hardware(hardware), load_shape(shape)
    found = recommend(trace, machine, model, context=context, formats=(word,), reshape="sizes")
    race = Race(trace, machine, model, reshape="sizes")
    plans = every_plan(race, word, context)
    best = max(one.speed for one in race.timed(plans))
    slots = race.capacities(Plan("auto", weights=word, serve={"context": context}))[0].plan.cache.capacity
    return Found(found.choices[0].tokens_per_second, best, slots, found.tried, len(plans))


PAGE = """# What `recommend` finds, against every plan of the same kinds

The worst of ten settings has {worst:.1f} % of the best plan's speed (to reach: 97 %). Written by
`python -m experiments.research.recommendations mixtral-mini.trace qwen3-moe-mini.trace --write FILE`.

The best is of every eviction policy offered with every prefetcher offered, in what fits, with and without the CPU
lane, and beside the lane also in every smaller cache by powers of two, all replayed on the whole trace. Routing is that
of the package's two models, recorded by `tracekit demo`, at the sizes of the model named; of the last row it is drawn,
with as many layers as the model has, and there one cache for all layers and slots split evenly among them are plans,
too. `recommend` was adjusted on other settings than these. Modelled, not measured.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs=2)
    parser.add_argument("--write", type=Path, help="write a page there")
    asked = parser.parse_args()
    rows, worst = [], 1.0
    with tempfile.TemporaryDirectory() as folder:
        synthesize(Path(folder) / "drawn.trace", DRAWN)
        traces = [Trace.open(path) for path in (*asked.traces, Path(folder) / "drawn.trace")]
        for which, shape, hardware, context, word in SETTINGS:
            one = compared(traces[which], shape, hardware, context, word)
            share = one.speed / one.best
            said = f"{one.speed:.3f} {one.best:.3f} {share:.4f}".split()
            rows.append([shape, hardware, word, str(context), one.slots, *said, f"{one.tried} of {one.plans}"])
            worst = min(worst, share)
            print(" ".join(rows[-1]), flush=True)
    if asked.write is not None:
        text = PAGE.format(worst=100 * worst, table=table(COLUMNS, rows))
        write_synced(asked.write, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()

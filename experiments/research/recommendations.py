"""Is what `recommend` finds the best there is? Against every plan of the same kinds, replayed whole.

    python -m experiments.research.recommendations mixtral-mini.trace qwen3-moe-mini.trace

prints, for ten settings of format, machine, context and shape, the speed of what was found over that of the best.
"""

import argparse

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.shapes import load_shape
from experiments.recommend import recommend
from experiments.recommend.race import Race
from tracekit.trace import Trace

SETTINGS = (  # which of the two traces, shape, machine, context, format
    (0, "mixtral-8x7b", "rtx3060", 8192, "hqq-4bit"),
    (0, "mixtral-8x7b", "rtx4090", 4096, "hqq-4bit"),
    (0, "mixtral-8x7b", "t4", 2048, "hqq-2bit"),
    (0, "mixtral-8x7b", "rtx3080m", 4096, "hqq-3bit"),
    (0, "mixtral-8x7b", "a100", 4096, "bf16"),
    (1, "qwen3-30b-a3b", "rtx3060", 8192, "hqq-8bit"),
    (1, "qwen3-30b-a3b", "rtx3060", 8192, "hqq-4bit"),
    (1, "qwen3-30b-a3b", "rtx4090", 8192, "bf16"),
    (1, "qwen3-30b-a3b", "t4", 8192, "bf16"),
    (1, "gpt-oss-20b", "rtx3060", 8192, "bf16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs=2)
    traces = [Trace.open(path) for path in parser.parse_args().traces]
    for which, shape, hardware, context, word in SETTINGS:
        trace, machine, model = traces[which], load_hardware(hardware), load_shape(shape)
        found = recommend(trace, machine, model, context=context, formats=(word,), reshape="sizes")
        race = Race(trace, machine, model, reshape="sizes")
        fitting = race.capacities(Plan("auto", weights=word, serve={"context": context}))
        plans = race.with_lanes(race.with_prefetching(race.with_policies(fitting)))
        best = max(one.speed for one in race.timed(plans))
        speed = found.choices[0].tokens_per_second
        print(
            f"{shape} on {hardware}, {word}, {context}: {speed:.3f} of {best:.3f} tokens/s, {speed / best:.4f}, "
            f"{found.tried} replays for {len(plans)}",
            flush=True,
        )


if __name__ == "__main__":
    main()

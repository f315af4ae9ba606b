"""From which host on computing misses beats copying them: the same plans on hosts from slow to fast."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.research import markdown
from experiments.research.domains import effect
from experiments.research.hosts.contest import BASE, contest, plans, sharing, with_host
from experiments.statistics.comparison import compare, judge
from tracekit.trace import Trace

RATIOS = (4.0, 3.0, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25)
"""What an expert takes on the host, in copies."""
SWEPT = ("host, all", "host, 8 a step, even", "host, 2 a step", "split, all")
ALONE, TOGETHER = "alone", "memory shared"


class Point(NamedTuple):
    """Speed of a plan against copy-all LRU, on a host that takes `ratio` copies for an expert."""

    model: str
    slots: int
    plan: str
    memory: str
    ratio: float
    effect: float


def sweep(
    trace: Trace, sizes: Sequence[int], shape: str, path: Path
) -> tuple[str, list[tuple[int, str, str, float, float]]]:
    """A table of plans by hosts, and its points without the model."""
    alone = {f"{ratio:g}": with_host(shape, ratio) for ratio in RATIOS}
    machines = alone | {f"{name}, shared": sharing(machine) for name, machine in alone.items()}
    rows, points = [], []
    for slots in sizes:
        wanted = {name: plan for name, plan in plans(slots).items() if name in (BASE, *SWEPT)}
        own = contest(trace, wanted, machines, shape, path.with_name(f"{path.name}-{slots}"))
        for first, memory in ((0, ALONE), (len(RATIOS), TOGETHER)):
            for name in SWEPT:
                judged = judge(
                    [
                        compare((name, own[name].ns[at]), (BASE, own[BASE].ns[at]), "tokens/s")
                        for at in range(first, first + len(RATIOS))
                    ]
                )
                effects = [one.effect for one in judged]
                start = crosses(RATIOS, effects)
                title = f"{slots} slots, {name}" + ("" if memory == ALONE else f", {memory}")
                rows.append([title, *(effect(one) for one in judged), "never" if start is None else f"{start:.2f}"])
                points += [(slots, name, memory, ratio, one) for ratio, one in zip(RATIOS, effects, strict=True)]
    title = (
        "speed, per cent against copy-all LRU, by what an expert takes on the host in copies; and from where on it wins"
    )
    return f"{title}\n\n" + markdown.table(["", *alone, "from"], rows), points


def crosses(ratios: Sequence[float], effects: Sequence[float]) -> float | None:
    """From which ratio down, of falling ones, effects are above 0, linear in its logarithm; None if the last is not."""
    below = [at for at, one in enumerate(effects) if one <= 0]
    if not below:
        return float(ratios[0])
    at = below[-1]
    if at == len(effects) - 1:
        return None
    share = -effects[at] / (effects[at + 1] - effects[at])
    left, right = np.log(ratios[at]), np.log(ratios[at + 1])
    return float(np.exp(left + (right - left) * share))

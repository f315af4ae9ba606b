"""How often 95 % intervals hold the truth, and how often plans that are alike are told apart, by number of requests.

`python -m experiments.research.coverage [FOLDER]` prints the tables of docs/experiments.md; with FOLDER also those of
the reference models' requests, recorded there at the first call (some minutes). The rest takes a minute on a core.
Every number follows from the seeds.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.research import markdown
from experiments.research.coverage.methods import TRIED, Method, used
from experiments.research.coverage.recorded import Population, populations
from experiments.research.coverage.samples import SAMPLES, UNSEEN, Sample
from experiments.statistics.interval import fewest_requests, probability, ratio_of
from tracekit.errors import TracekitError

COUNTS = (5, 6, 7, 8, 10, 12, 16, 24, 40, 80, 160)
FEW_COUNTS = (6, 8, 12, 24, 80)
TRIALS, FEW_TRIALS = 20_000, 2_000
LEAST_TRIALS = 300
"""Of fewer trials with a verdict no share is printed."""
MOST_ALIKE = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """Of so many studies with a verdict, the share whose interval holds the truth; and of all, the share with one."""

    held: float
    verdicts: float
    wrong: float
    """Share of verdicts that tell plans apart which are alike."""


def judged(sample: Sample, method: Method, rng: np.random.Generator, differ: np.ndarray | None = None) -> Held | None:
    """How often the interval holds 0, where a verdict is given; None of too few trials with one."""
    parts, wholes = sample
    ratio = ratio_of(parts, wholes)
    effective = ratio.effective if differ is None else np.minimum(ratio.effective, differ)
    told = effective >= fewest_requests()
    if told.sum() < LEAST_TRIALS:
        return None
    low, high = method(parts, wholes, rng)
    held = (low <= 1e-15) & (high >= -1e-15)
    wrong = ~held
    if method is used:
        wrong = np.maximum(probability(ratio), 2.0 ** (1 - effective)) <= MOST_ALIKE
    return Held(float(held[told].mean()), float(told.mean()), float(wrong[told].mean()))


def words(found: Held | None, wrong: bool = False) -> str:
    """A cell of a table."""
    if found is None:
        return "too few"
    share = "" if found.verdicts > 0.995 else f" ({100 * found.verdicts:.0f} %)"
    return f"{100 * (found.wrong if wrong else found.held):.1f}{share}"


def simulated() -> Iterator[tuple[str, list[Held | None]]]:
    """The method that is used, on every kind of sample; last what it cannot do."""
    for place, (name, draw) in enumerate((SAMPLES | UNSEEN).items()):
        rng = np.random.default_rng(place)
        yield name, [judged(draw(rng, TRIALS, count), used, rng) for count in COUNTS]


def resampled(found: Population, rng: np.random.Generator, count: int, *, alike: bool) -> Held | None:
    """Studies of `count` requests drawn from those recorded; `alike`: whose costs is whose is tossed for each."""
    ours, theirs = found.ours, found.theirs
    drawn = rng.integers(0, len(ours), (FEW_TRIALS, count))
    a, b = ours[drawn], theirs[drawn]
    if alike:
        swapped = rng.random(a.shape) < 0.5
        a, b, truth = np.where(swapped, b, a), np.where(swapped, a, b), 0.0
    else:
        truth = (theirs.sum() - ours.sum()) / (theirs.sum() + ours.sum())
    parts, wholes = b - a - truth * (a + b), a + b
    return judged((parts, wholes), used, rng, (a != b).sum(axis=1))


def main() -> int:
    """Print the tables; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.coverage", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, nargs="?", help="where recorded requests are, or are to be")
    given = parser.parse_args()
    counts = [str(count) for count in COUNTS]
    tables = list(simulated())
    print(f"95 % intervals that hold the truth, in percent of {TRIALS:,} (studies with a verdict, if not all):\n")
    print(markdown.table(["requests", *counts], [[name, *map(words, found)] for name, found in tables]))
    print("\nplans that are alike told apart, in percent:\n")
    rows = [[name, *(words(one, wrong=True) for one in found)] for name, found in tables]
    print(markdown.table(["requests", *counts], rows))
    print(f"\ntried ({FEW_TRIALS:,} trials; where a verdict is given):\n")
    rows = []
    for name in ("homogeneous", "very skewed differences (6)", "5 % hold half", "5 % hold half, skewed (2)"):
        for method, make in TRIED.items():
            rng = np.random.default_rng(17)
            shares = [words(judged(SAMPLES[name](rng, FEW_TRIALS, count), make, rng)) for count in FEW_COUNTS]
            rows.append([name, method, *shares])
    print(markdown.table(["requests", "method", *map(str, FEW_COUNTS)], rows))
    try:
        found = [] if given.folder is None else populations(given.folder)
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for alike in (False, True) if found else ():
        what = "plans that are alike told apart" if alike else "intervals that hold the truth"
        print(f"\nrequests of the reference models, drawn anew: {what}, in percent of {FEW_TRIALS:,}:\n")
        rows = []
        for place, one in enumerate(found):
            rng = np.random.default_rng(place)
            shares = [words(resampled(one, rng, count, alike=alike), wrong=alike) for count in COUNTS]
            effect = 100 * (one.theirs.sum() / one.ours.sum() - 1)
            rows.append([one.model, f"lru against {one.rival} ({effect:+.1f} %)", *shares])
        print(markdown.table(["model", "plans", *counts], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

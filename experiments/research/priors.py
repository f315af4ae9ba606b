"""What the priors' families were fitted to, how well they give it back, and whether recorded traces fall within them.

python -m experiments.research.priors figures            # every published figure beside what is drawn
python -m experiments.research.priors score T.trace ...  # recorded traces, none of which a family was fitted to
python -m experiments.research.priors fit FAMILY low     # the numbers of a family's file
"""

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from engine.curves.stack_curve import lru_curve
from experiments.research import markdown
from tracekit.arrays import U16
from tracekit.priors import LEVELS, Family, Known, Locality, family_names, family_of, load_family
from tracekit.priors.family import Level
from tracekit.priors.traces import prior_trace
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.trace import Trace

app = typer.Typer(name="python -m experiments.research.priors", add_completion=False, pretty_exceptions_enable=False)

LAYERS, TOKENS, REQUESTS, WARM = 12, 512, 8, 512
"""Of what is drawn to measure a figure whose source does not say."""
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Of the experts of a layer: cache sizes at which recorded traces are scored."""
FITTED = ("topic", "slow", "fast")
SLOW, FAST = 32, 3
"""Tokens for which slow and fast parts last: too few figures are known at several lags to fit these too."""
COLUMNS = ("model", "experts", "figure", "published", "drawn", "source")


def drawn_figure(known: Known, locality: Locality, seed: int = 0) -> float:
    """The figure on routing drawn with a locality, as the source took it."""
    many = known.statistic in ("static", "chance")
    with tempfile.TemporaryDirectory() as folder:
        trace = prior_trace(
            Path(folder) / "drawn.trace",
            [known.experts] * (known.layers or LAYERS),
            known.top_k,
            family=_only(locality),
            tokens=(known.tokens or TOKENS) * (REQUESTS if many else 1),
            prompt_tokens=WARM if known.statistic == "lru" else 0,
            requests=REQUESTS if many else 1,
            seed=seed,
        )
        return figure(trace, known)


def figure(trace: Trace, known: Known) -> float:
    """The figure on the generated tokens of a trace; see `Known`."""
    experts = trace.experts[trace.phase == DECODE]
    if known.statistic == "overlap":
        return float(kept(experts, 1).mean())
    if known.statistic == "chance":
        return float(kept(experts, len(experts) // trace.manifest.requests).mean())
    if known.statistic == "any-repeat":
        layer = round((known.depth or 0) * (trace.layers - 1))
        return float(kept(experts, 1)[:, layer].any(axis=1).mean())
    assert known.slots is not None
    if known.statistic in ("static", "hottest"):
        other = trace.request < trace.manifest.requests // 2
        tested = trace.experts[~other]
        return among_popular(trace.experts[other] if other.any() else tested, tested, round(known.slots))
    return lru(trace, known.slots)


def lru(trace: Trace, slots: float) -> float:
    """Hits of LRU among the lookups of decode steps; between whole numbers of slots linearly."""
    found = lru_curve(trace, "layer")
    hits = found.hits[DECODE] / found.lookups[DECODE]
    return float(np.interp(slots, np.arange(len(hits)), hits))


def kept(experts: U16, lag: int) -> np.ndarray:
    """Which of its experts a token has from the one `lag` before, [tokens - lag, layers, top_k]."""
    here, before = experts[lag:], experts[:-lag]
    found: np.ndarray = (here[..., :, None] == before[..., None, :]).any(axis=3) & (here != UNUSED)
    return found


def among_popular(counted: U16, tested: U16, slots: int) -> float:
    """Choices [tokens, layers, top_k] among each layer's `slots` most popular experts as they were counted."""
    found = []
    for layer in range(tested.shape[1]):
        popular = np.argsort(-np.bincount(counted[:, layer].ravel()), kind="stable")[:slots]
        found.append(np.isin(tested[:, layer], popular).mean())
    return float(np.mean(found))


def _only(locality: Locality) -> Family:
    """A family of one locality, whatever the level."""
    return Family(name="one", experts=1, top_k=1, low=locality, likely=locality, high=locality, known=())


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """LRU's hit ratio at a cache size on a recorded trace, and what the prior of its granularity said."""

    trace: str
    experts: int
    top_k: int
    family: str
    slots: int
    recorded: float
    said: dict[Level, float]

    @property
    def inside(self) -> bool:
        return self.said["low"] <= self.recorded <= self.said["high"]


def score(trace: Trace, name: str, seed: int = 0) -> list[Point]:
    """Every cache size of `SHARES`, with as many tokens, prompts and requests drawn as were recorded."""
    prompts = int((trace.phase == PREFILL).sum())
    decode = trace.tokens - prompts
    experts, requests = trace.num_experts, trace.manifest.requests
    family = family_of(experts, trace.top_k)
    slots = sorted({max(trace.top_k, round(share * experts)) for share in SHARES} - {experts})
    said: dict[int, dict[Level, float]] = {count: {} for count in slots}
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            drawn = prior_trace(
                Path(folder) / f"{level}.trace",
                trace.manifest.experts_per_layer,
                trace.top_k,
                level=level,
                tokens=decode,
                prompt_tokens=round(prompts / requests),
                requests=requests,
                seed=seed,
            )
            for count in slots:
                said[count][level] = lru(drawn, count)
    return [
        Point(
            trace=name,
            experts=experts,
            top_k=trace.top_k,
            family=family.name,
            slots=count,
            recorded=lru(trace, count),
            said=said[count],
        )
        for count in slots
    ]


@app.command()
def figures() -> None:
    """Every published figure, and what the family's locality of that level gives instead."""
    for name in family_names():
        family = load_family(name)
        for level in LEVELS:
            rows = [
                (
                    known.model,
                    f"{known.experts}, top-{known.top_k}",
                    words(known),
                    f"{known.value:.3f}",
                    f"{drawn_figure(known, family.locality(level)):.3f}",
                    known.source,
                )
                for known in family.known
                if known.level == level
            ]
            print(f"{name}, {level}\n\n{markdown.table(COLUMNS, rows)}\n", flush=True)


@app.command("score")
def scores(traces: Annotated[list[Path], typer.Argument(help="recorded traces")]) -> None:
    """Recorded hit ratios of LRU against the interval of the prior of their granularity."""
    points = [point for path in traces for point in score(Trace.open(path), path.stem)]
    rows = [
        (
            point.trace,
            f"{point.experts}, top-{point.top_k}",
            point.family,
            str(point.slots),
            f"{point.recorded:.3f}",
            *(f"{point.said[level]:.3f}" for level in LEVELS),
            "inside" if point.inside else "outside",
        )
        for point in points
    ]
    print(markdown.table(("trace", "experts", "family", "slots", "recorded", *LEVELS, "verdict"), rows))
    print(f"\n{sum(point.inside for point in points)} of {len(points)} inside")


@app.command()
def fit(
    name: Annotated[str, typer.Argument(help="a shipped family")],
    level: Annotated[str, typer.Argument(help="low, likely or high")],
) -> None:
    """The topic, slow and fast parts that give the level's figures back best, popularity and depth as in the file."""
    from scipy.optimize import minimize

    family = load_family(name)
    begun = next(family.locality(one) for one in LEVELS if one == level)
    figures = [known for known in family.known if known.level == level]

    def made(parts: np.ndarray) -> Locality | None:
        values = {**dict(zip(FITTED, parts.tolist(), strict=True)), "slow_tokens": SLOW, "fast_tokens": FAST}
        whole = msgspec.structs.replace(begun, **values)
        return whole if parts.min() >= 0 and (parts.sum() + begun.popularity) * max(begun.by_depth) <= 1 else None

    def missed(parts: np.ndarray) -> float:
        locality = made(parts)
        if locality is None:
            return 1e3 + float(np.abs(parts).sum())
        errors = [drawn_figure(known, locality) - known.value for known in figures]
        return float(np.square(errors).mean())

    start = np.array([getattr(begun, part) for part in FITTED])
    found = minimize(missed, start, method="Nelder-Mead", options={"maxfev": 80, "xatol": 0.005, "fatol": 1e-6})
    parts = ", ".join(f"{part} = {value:.3f}" for part, value in zip(FITTED, found.x, strict=True))
    print(f"{parts}; root mean square of what is missed {found.fun**0.5:.4f}")


def words(known: Known) -> str:
    """A figure in words."""
    slots = "" if known.slots is None else f" {known.slots:g}"
    over = "" if known.tokens is None else f" over {known.tokens} tokens"
    texts = {
        "overlap": "overlap with the token before",
        "chance": "overlap with another request",
        "any-repeat": f"any expert repeated, depth {known.depth}",
        "lru": f"LRU,{slots} slots, warm",
        "lru-cold": f"LRU,{slots} slots, cold",
        "hottest": f"the{slots} most popular of the request",
        "static": f"the{slots} most popular of others",
    }
    return texts[known.statistic] + over


if __name__ == "__main__":
    app()

"""A published figure of routing, measured on what a locality draws in the way its source took it."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from engine.curves.stack_curve import lru_curve
from tracekit.arrays import U16
from tracekit.priors import Family, Known, Level, Locality, prior_trace
from tracekit.rows import DECODE, UNUSED
from tracekit.trace import Trace

LAYERS, TOKENS, REQUESTS, WARM = 12, 512, 8, 512
"""Of what is drawn to measure a figure whose source does not say."""
FITTED = ("topic", "slow", "fast")


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


def fitted(family: Family, level: Level) -> tuple[dict[str, float], float]:
    """The `FITTED` parts that give the level's figures back best, and the root mean square of what is missed.

    Popularity and ends stay as they are; where fewer figures are known than there are parts, one factor on all three.
    """
    from scipy.optimize import minimize

    begun, figures = family.locality(level), [known for known in family.known if known.level == level]
    start = np.array([getattr(begun, part) for part in FITTED])

    def parts_of(free: np.ndarray) -> np.ndarray:
        return free if len(free) > 1 else start * free

    def made(parts: np.ndarray) -> Locality | None:
        whole = msgspec.structs.replace(begun, **dict(zip(FITTED, parts.tolist(), strict=True)))
        return whole if parts.min() >= 0 and parts.sum() + begun.popularity <= 1 else None

    def missed(free: np.ndarray) -> float:
        locality = made(parts_of(free))
        if locality is None:
            return 1e3 + float(np.abs(free).sum())
        errors = [drawn_figure(known, locality) - known.value for known in figures]
        return float(np.square(errors).mean())

    free = start if len(figures) >= len(FITTED) else np.ones(1)
    found = minimize(missed, free, method="Nelder-Mead", options={"maxfev": 80, "xatol": 0.003, "fatol": 1e-6})
    parts = dict(zip(FITTED, parts_of(found.x).tolist(), strict=True))
    return parts, float(found.fun) ** 0.5

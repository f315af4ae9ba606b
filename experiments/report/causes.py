"""Causes of a step's time beyond computing alone: a colour for each, and what it means, said where it is drawn."""

from collections.abc import Sequence
from html import escape

from experiments.report.marks import swatch

NEUTRAL = "#8a8f94"  # legible on both grounds: bounds are not contestants
CAUSES = {
    "overhead": (NEUTRAL, "fixed times of layers, steps, gate readback and asking for copies"),
    "compulsory": ("#56B4E9", "every expert has to be copied once"),
    "capacity": ("#0072B2", "the cache is smaller than the model; nobody's decisions could avoid this"),
    "policy": ("#D55E00", "eviction does not know the future"),
    "prefetch": ("#009E73", "what prefetching would win if its copies cost nothing: to the left of zero"),
    "pollution": ("#CC79A7", "experts copied again because a prefetch had displaced them"),
    "late prefetch": ("#E69F00", "waiting for prefetches that were asked for too late"),
    "prefetch copies": ("#9467bd", "what else prefetched copies cost: the link that they keep from demand"),
    "lane": ("#56641a", "what it wins that misses are not all copied and kept: to the left of zero"),
}
"""By cause; one that is not here is drawn neutral and goes by its name alone."""


def colour(cause: str) -> str:
    """The colour of a cause."""
    return CAUSES.get(cause, (NEUTRAL, ""))[0]


def explained(causes: Sequence[str]) -> str:
    """A legend of these causes in which each is explained, as HTML."""
    lines = []
    for cause in causes:
        words = CAUSES.get(cause, (NEUTRAL, ""))[1]
        told = f": {escape(words)}" if words else ""
        lines.append(f"<li>{swatch(colour(cause))}<span><b>{escape(cause)}</b>{told}</span></li>")
    return f'<ul class="words">{"".join(lines)}</ul>'

"""Traces of stated statistics, for what needs a known answer: tests, examples, limits. No model chose their experts.

    synthesize("zipf.trace", Recipe(tokens=10_000, layers=8, experts=64, top_k=2, zipf=0.8, persistence=0.3))

Popularity. Of each token's `top_k` distinct experts at a layer, the expert of popularity rank r (from 1) is one with
probability proportional to r ** -zipf, exactly: systematic sampling (Madow 1949) with one uniform number per token and
layer draws distinct experts of any given inclusion probabilities. Which experts are popular is drawn for each layer.

Persistence. At each layer a token has the choice of the token before it, whole, with probability `persistence`, else a
new one. Neighbours then share persistence + (1 - persistence) * chance of their experts, where chance is the sum of
the squared inclusion probabilities over top_k.

Domain shifts. Every `shift_every` tokens, popularity is dealt anew over the experts of every layer; `domains` such
deals take turns.

Requests are `request_tokens` long, all decode, a step each. A trace is the same for the same recipe.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.durable import whole_or_nothing
from tracekit.errors import TraceError
from tracekit.manifest import MAX_BYTES, MAX_COUNT, MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, Manifest, ModelInfo
from tracekit.rows import DECODE
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

_BLOCK = 1 << 22  # experts drawn at once
_MOST_DEALT = 1 << 26  # experts of all layers of all domains


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a synthetic trace is to be like; see the module's text."""

    tokens: int
    layers: int = 8
    experts: int = 64
    top_k: int = 2
    zipf: float = 0.0
    persistence: float = 0.0
    shift_every: int | None = None
    domains: int = 2
    request_tokens: int | None = None
    expert_bytes: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise TraceError, naming the field, for what cannot be drawn."""
        limits = {
            "tokens": MAX_COUNT,
            "layers": MAX_LAYERS,
            "experts": MAX_EXPERTS,
            "top_k": MAX_TOP_K,
            "domains": _MOST_DEALT,
            "shift_every": MAX_COUNT,
            "request_tokens": MAX_COUNT,
            "expert_bytes": MAX_BYTES,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise TraceError(f"{name} is {value}, expected 1 to {most}")
        if (dealt := self.domains * self.layers * self.experts) > _MOST_DEALT:
            raise TraceError(f"domains x layers x experts is {dealt}, expected at most {_MOST_DEALT}")
        if not 0 <= self.persistence <= 1:
            raise TraceError(f"persistence is {self.persistence}, expected 0 to 1")
        if not 0 <= self.zipf <= 10:
            raise TraceError(f"zipf is {self.zipf}, expected 0 to 10")
        if not 0 <= self.seed < 2**63:
            raise TraceError(f"seed is {self.seed}, expected 0 to 2**63 - 1")

    def inclusion(self) -> NDArray[np.float64]:
        """The probability that a token chooses the expert of each popularity rank, [experts]; they sum to top_k."""
        share = np.arange(1, self.experts + 1, dtype=np.float64) ** -self.zipf
        chosen: NDArray[np.float64] = self.top_k * share / share.sum()
        if self.top_k > self.experts or chosen[0] > 1 + 1e-12:
            raise TraceError(
                f"the most popular of {self.experts} experts would be chosen {chosen[0]:.2f} times per token at "
                f"zipf {self.zipf} and top-{self.top_k}: lower zipf or top_k, or take more experts"
            )
        return chosen

    def overlap(self) -> float:
        """The expected share of a token's experts that the token before it chose too, within a domain."""
        chance = float((self.inclusion() ** 2).sum() / self.top_k)
        return self.persistence + (1 - self.persistence) * chance


def synthesize(path: str | Path, recipe: Recipe, *, progress: Callable[[int], object] = lambda tokens: None) -> Trace:
    """Write the trace `path`, which must not exist, in constant memory, and open it.

    `progress` is told of the tokens written. Raises TraceError when the recipe is impossible or writing fails.
    """
    recipe.check()
    recipe.inclusion()
    draw = _Draw(recipe)
    rows = max(1, _BLOCK // (recipe.layers * recipe.top_k))
    with whole_or_nothing(Path(path)) as place, TraceWriter(place, _manifest(recipe)) as writer:
        for first in range(0, recipe.tokens, rows):
            token = np.arange(first, min(first + rows, recipe.tokens))
            length = recipe.request_tokens or recipe.tokens
            writer.append(
                step=token,
                request=token // length,
                position=token % length,
                phase=DECODE,
                experts=draw.next(len(token)),
            )
            writer.flush()
            progress(len(token))
    return Trace.open(path)


def _manifest(recipe: Recipe) -> Manifest:
    settings = {name: value for name, value in msgspec.to_builtins(recipe).items() if name != "seed"}
    settings_text = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return Manifest(
        source="synthetic",
        model=ModelInfo(id=f"synthetic/{recipe.experts}x{recipe.layers}-top{recipe.top_k}", family="synthetic"),
        moe_layers=list(range(recipe.layers)),
        model_layers=recipe.layers,
        experts_per_layer=[recipe.experts] * recipe.layers,
        top_k=recipe.top_k,
        expert_bytes=[recipe.expert_bytes] * recipe.layers if recipe.expert_bytes else [],
        sampling={"generator": "zipf-persistence", **settings},
        seed=recipe.seed,
        notes=[f"synthetic: {settings_text}"],
    )


class _Draw:
    """The stream of choices; `next` gives the following tokens'."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._bounds = np.cumsum(recipe.inclusion())
        self._bounds[-1] = recipe.top_k  # rounding must not leave a gap at the end
        # The expert of each rank, [domains, layers, experts].
        dealt = np.tile(np.arange(recipe.experts, dtype=np.uint16), (recipe.domains, recipe.layers, 1))
        self._expert_of = self._rng.permuted(dealt, axis=2)
        self._last = np.zeros((recipe.layers, recipe.top_k), np.uint16)
        self._token = 0

    def next(self, tokens: int) -> NDArray[np.uint16]:
        """Choices of the next tokens, [tokens, layers, top_k]."""
        recipe, rng = self._recipe, self._rng
        number = np.arange(self._token, self._token + tokens)
        domain = number // (recipe.shift_every or recipe.tokens) % recipe.domains
        begins = number % (recipe.shift_every or recipe.tokens) == 0
        start = rng.random((tokens, recipe.layers))
        ranks = np.searchsorted(self._bounds, start[:, :, None] + np.arange(recipe.top_k), side="right")
        experts = self._expert_of[domain[:, None, None], np.arange(recipe.layers)[:, None], ranks]
        # Where a choice persists, it is the latest one that did not: of this block, or the last of the one before.
        fresh = (rng.random((tokens, recipe.layers)) >= recipe.persistence) | begins[:, None]
        latest = np.maximum.accumulate(np.where(fresh, np.arange(tokens)[:, None], -1), axis=0)
        kept = np.take_along_axis(experts, np.maximum(latest, 0)[:, :, None], axis=0)
        chosen: NDArray[np.uint16] = np.where((latest >= 0)[:, :, None], kept, self._last)
        self._last = chosen[-1]
        self._token += tokens
        return chosen

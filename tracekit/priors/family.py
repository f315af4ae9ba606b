"""A family of models of one granularity: how local the routing of the least, a likely and the most local one is.

Locality is said of a gate's scores, not of experts, so that it carries over to other numbers of experts. The score of
one expert at one layer is taken to be normal, and its variance to be made of parts that change at different speeds:

    popularity   the expert's own, for ever
    topic        for a request
    slow, fast   for about so many tokens: autoregressive, with correlation exp(-lag / tokens)
    the rest     for one token

so scores `lag` tokens apart correlate by popularity + topic + slow exp(-lag / slow_tokens) + fast exp(-lag /
fast_tokens). The experts of the k highest scores are chosen. With many experts that is every score above a threshold,
and the share of its experts that a token has from the one `lag` before is an orthant of the bivariate normal
distribution over k / experts: published overlaps can be solved for correlations, at any granularity.
"""

import math
import os
from typing import Literal, get_args

import msgspec

from tracekit import named_toml
from tracekit.errors import TraceError

Level = Literal["low", "likely", "high"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the least local known model to the most local."""

Statistic = Literal["overlap", "chance", "any-repeat", "lru", "lru-cold", "hottest", "static"]


class Locality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts of the variance of a gate's scores, each 0 to 1 and at most 1 in all; see the module's text.

    `ends` multiplies them at the first and the last MoE layer, where real models route more by the token alone.
    """

    popularity: float
    topic: float
    slow: float
    slow_tokens: float
    fast: float
    fast_tokens: float
    ends: tuple[float, float] = (1, 1)

    def correlation(self, lag: float) -> float:
        """Of an expert's scores `lag` tokens apart in a request, but at the ends."""
        decaying = self.slow * math.exp(-lag / self.slow_tokens) + self.fast * math.exp(-lag / self.fast_tokens)
        return self.popularity + self.topic + decaying

    def at_layer(self, layer: int, layers: int) -> float:
        """The factor of `ends` at a layer of `layers`."""
        return self.ends[0] if layer == 0 else self.ends[1] if layer == layers - 1 else 1.0

    def check(self, label: str) -> None:
        """TraceError, after `label`, for what is no variance."""
        parts = (self.popularity, self.topic, self.slow, self.fast)
        if not all(part >= 0 for part in parts) or not all(factor >= 0 for factor in self.ends):
            raise TraceError(f"{label}: parts of a variance are 0 or more")
        if not sum(parts) * max(1, *self.ends) <= 1:
            raise TraceError(f"{label}: the parts of the variance are {sum(parts) * max(1, *self.ends):.3f}, at most 1")
        if not (self.slow_tokens > 0 and self.fast_tokens > 0):
            raise TraceError(f"{label}: slow_tokens and fast_tokens are above 0")


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published figure of a model, and where it stands.

    statistic: what share `value` is:
        overlap: of its experts that a token has from the one before;
        chance: of its experts that a token has in common with one of another request;
        any-repeat: of tokens with any expert of the one before, at the layer that `depth` (0 to 1) names;
        lru, lru-cold: of lookups that hit under LRU with `slots` a layer, after a long prompt, or from an empty cache;
        hottest, static: of choices among the `slots` most popular experts of the request itself, of other requests.
    tokens: how many the figure was taken over.
    """

    model: str
    experts: int
    top_k: int
    statistic: Statistic
    value: float
    level: Level
    source: str
    slots: float | None = None
    tokens: int | None = None
    depth: float | None = None
    layers: int | None = None


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Localities of models of about `experts` experts, `top_k` of them chosen, and what they were fitted to."""

    name: str
    experts: int
    top_k: int
    low: Locality
    likely: Locality
    high: Locality
    known: tuple[Known, ...]

    def locality(self, level: Level) -> Locality:
        """One of the three."""
        found: Locality = getattr(self, level)
        return found

    def distance(self, experts: int, top_k: int) -> float:
        """How far a granularity is from the family's: doublings of the experts, and half those of the share chosen."""
        share = math.log2(top_k / experts) - math.log2(self.top_k / self.experts)
        return abs(math.log2(experts / self.experts)) + abs(share) / 2

    def models(self) -> tuple[str, ...]:
        """The models it was fitted to, in the order of the file."""
        return tuple(dict.fromkeys(known.model for known in self.known))

    def notice(self, experts: int, top_k: int) -> str:
        """One line on what it is to a model of that granularity."""
        text = f"fitted to figures of {', '.join(self.models())}"
        if (experts, top_k) == (self.experts, self.top_k):
            return text
        return f"{text}; nearest to top-{top_k} of {experts}, itself top-{self.top_k} of {self.experts}"


def family_names() -> tuple[str, ...]:
    """The shipped families, sorted."""
    return named_toml.names("tracekit.priors", "families")


def load_family(name: str | os.PathLike[str]) -> Family:
    """A shipped family by name, or one of your own by the path of its .toml. TraceError where it is none."""
    label, tables = named_toml.load_tables(
        name, what="prior family", package="tracekit.priors", folder="families", error=TraceError
    )
    family = named_toml.convert(tables, Family, label=label, error=TraceError)
    if not 0 < family.top_k <= family.experts:
        raise TraceError(f"{label}: top_k is {family.top_k} of {family.experts} experts")
    for level in LEVELS:
        family.locality(level).check(f"{label}, {level}")
    return family


def family_of(experts: int, top_k: int, *, without: str | None = None) -> Family:
    """The shipped family nearest to a granularity, of equally near ones the first by name.

    `without`: none that was fitted to this model.
    """
    families = [load_family(name) for name in family_names()]
    fit = [family for family in families if without not in family.models()]
    return min(fit, key=lambda family: family.distance(experts, top_k))

"""A caution: what to know before believing a result, with a code by which programs tell one from another."""

from typing import Literal

import msgspec

Code = Literal[
    "batched",
    "incomplete trace",
    "synthetic trace",
    "no decode steps",
    "few decode tokens",
    "independent routing",
    "costs",
    "below the token cycle",
    "mostly overhead",
    "link busy",
    "first order",
    "precision tiers",
    "does not fit",
    "holds no expert",
]


class Caution(msgspec.Struct, frozen=True):
    """`text` is one line for people: results print it as a warning."""

    code: Code
    text: str


FEW_TOKENS = 64
PRIOR = "synthetic prior"
"""The source that the manifest of a trace drawn from a prior (`tracekit.priors`) names."""
MARK = "prior, not your model"
"""What is said beside every figure that comes from one."""


def routing_cautions(*, complete: bool, source: str, decode_tokens: int, independent: bool | None) -> list[Caution]:
    """What limits whatever is concluded from a routing; `independent`: whether it looks drawn anew for every token."""
    found = []
    if not complete:
        found.append(Caution("incomplete trace", "the trace is incomplete: its recording did not finish"))
    if source == PRIOR:
        text = f"{MARK}: routing drawn from what is published of models of this granularity"
        found.append(Caution("synthetic trace", text))
    elif source.startswith("synthetic"):
        found.append(Caution("synthetic trace", "the trace is synthetic: hit ratios say nothing about a real model"))
    if decode_tokens == 0:
        found.append(Caution("no decode steps", "the trace has no decode steps: no tokens per second"))
    elif decode_tokens < FEW_TOKENS:
        text = f"only {decode_tokens} decode tokens: the filling of the cache weighs more than the policy"
        found.append(Caution("few decode tokens", text))
    if independent:
        text = "routing looks independent from token to token: no policy can gain from recency in it"
        found.append(Caution("independent routing", text))
    return found

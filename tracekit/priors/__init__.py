"""Priors: routing for a model of which there is no trace, drawn from what is published of models like it.

A family (`families/*.toml`) is found by granularity, experts and top-k. It holds three localities, fitted to the least
local, a likely and the most local of the models known, and the published figures behind each. Traces drawn from them
are synthetic and say so; whatever is found on them is a "prior, not your model".
"""

from tracekit.caution import MARK, PRIOR
from tracekit.priors.family import LEVELS, Family, Known, Level, Locality, family_names, family_of, load_family
from tracekit.priors.traces import is_prior, prior_trace, prior_traces

__all__ = [
    "LEVELS",
    "MARK",
    "PRIOR",
    "Family",
    "Known",
    "Level",
    "Locality",
    "family_names",
    "family_of",
    "is_prior",
    "load_family",
    "prior_trace",
    "prior_traces",
]

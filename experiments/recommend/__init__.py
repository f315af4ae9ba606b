"""Which plan to run: formats, capacities, policies, prefetchers, misses and disk in a machine's memory."""

from experiments.recommend.choice import Choice, Recommendation
from experiments.recommend.on_prior import recommend_on_prior
from experiments.recommend.recommend import FORMATS, recommend

__all__ = ["FORMATS", "Choice", "Recommendation", "recommend", "recommend_on_prior"]

"""Only what the gate wants much."""

from policies.admission.base import Admission
from policies.fields import parameter


class ScoreAdmission(Admission):
    """Admits an expert if its part of the visit's gate weights reaches `threshold`."""

    name = "score"
    summary = "what has enough of the visit's gate weight"
    source = "after Zhong et al. 2025, HybriMoE, arXiv 2504.05897 (score-aware caching)"
    reads = "gate-share"

    threshold = parameter(0.1, low=0, high=1)

    def admits(self, expert: int, group: int, now: int, signal: float) -> bool:
        return signal >= self.threshold

"""What a recommendation is made of: plans, how fast they are, what they take and what is lost by them."""

from typing import NamedTuple

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.result import Estimates, Time
from experiments.prior import About
from experiments.recommend.residence import Where


class Choice(NamedTuple):
    """A plan, and what a replay of the whole trace says of it.

    `low` to `high` is the interval of its speed: over requests, None where they are few; on routing drawn from a prior,
    between the least and the most local model known.
    """

    plan: Plan
    where: Where
    """Where its experts lie."""
    machine: HardwareProfile
    """The machine with the memory that the plan has there."""
    time: Time
    estimates: Estimates
    low: float | None
    high: float | None
    quality_loss: float | None
    """A share of what the model without loss reaches; None: not known."""
    warnings: list[str]

    @property
    def tokens_per_second(self) -> float:
        return self.time.tokens_per_second or 0.0

    @property
    def limit(self) -> str:
        """What takes the largest part of the time."""
        parts = {"computing": self.time.compute_s, "overhead of the engine": self.time.overhead_s}
        parts |= {f"waiting: {cause.replace('_', ' ')}": seconds for cause, seconds in self.time.stall_s.items()}
        return max(parts, key=lambda name: parts[name])


class Recommendation(NamedTuple):
    """The best plan of each format, fastest first; formats that are left out, and why; how many plans were tried."""

    choices: list[Choice]
    refused: dict[str, str]
    tried: int
    prior: About | None = None
    """Where the routing came from, if no trace was given."""

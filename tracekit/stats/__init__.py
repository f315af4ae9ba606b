"""What a trace is like, before any policy: how much it demands, how evenly, with how much locality and structure.

    from tracekit.trace import Trace
    from tracekit.stats import describe
    describe(Trace.open("prompts.trace")).overlap

Traces are read block by block: memory is the columns that every open trace holds, and counts per layer and expert.
"""

from tracekit.stats.describe import describe
from tracekit.stats.figures import TraceStats

__all__ = ["TraceStats", "describe"]

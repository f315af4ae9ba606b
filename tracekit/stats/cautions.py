"""What to know before believing a replay of a trace."""

from tracekit.caution import FEW_TOKENS, routing_cautions
from tracekit.stats.figures import TraceStats

_FEW_PAIRS = 32
_MANY_FIRST_USES = 0.1


def cautions(stats: TraceStats) -> list[str]:
    """One line for each thing about a trace that limits what a replay of it says."""
    independent = False
    if stats.overlap is not None and stats.overlap_chance is not None and stats.decode_tokens > _FEW_PAIRS:
        excess = stats.overlap - stats.overlap_chance
        independent = excess <= max(3 * stats.overlap_error, 0.05 * stats.overlap_chance)
    warnings = [
        caution.text
        for caution in routing_cautions(
            complete=stats.complete,
            source=stats.source,
            decode_tokens=stats.decode_tokens,
            independent=independent,
        )
    ]
    first_uses = stats.first_use_share or 0.0
    if first_uses > _MANY_FIRST_USES and stats.decode_tokens >= FEW_TOKENS:
        share = f"{100 * first_uses:.0f} %"
        warnings.append(f"short: {share} of the choices are of experts not chosen before, which no cache can hold")
    shift = stats.domain_shift
    if shift is not None and shift.parts >= 8 and shift.halves > max(shift.halves_by_chance_p95, 0.01):
        warnings.append(
            f"the second half is routed otherwise than the first ({shift.halves:.3f} bits apart, shuffled "
            f"{shift.halves_by_chance:.3f}): what is fitted on one half misleads on the other"
        )
    if "weights" not in stats.recorded:
        warnings.append("no gate weights: policies that read them cannot be replayed")
    if stats.expert_bytes is None:
        warnings.append("bytes per expert unknown: give replay a --model-shape")
    return warnings

"""What to know before believing a replay of a trace."""

from tracekit.stats.figures import TraceStats

_FEW_TOKENS = 64
_FEW_PAIRS = 32
_MANY_FIRST_USES = 0.1


def cautions(stats: TraceStats) -> list[str]:
    """One line for each thing about a trace that limits what a replay of it says."""
    warnings = []
    if not stats.complete:
        warnings.append("incomplete: the recording was interrupted; what is here is whole, --resume continues it")
    if stats.source.startswith("synthetic"):
        warnings.append("synthetic: no model chose these experts; conclusions do not carry over to one")
    if stats.decode_tokens < _FEW_TOKENS:
        warnings.append(f"only {stats.decode_tokens} decode tokens: most of a replay will be first uses")
    elif stats.first_use_share is not None and stats.first_use_share > _MANY_FIRST_USES:
        share = f"{100 * stats.first_use_share:.0f} %"
        warnings.append(f"short: {share} of the choices are of experts not chosen before, which no cache can hold")
    if stats.overlap is not None and stats.overlap_chance is not None and stats.decode_tokens > _FEW_PAIRS:
        excess = stats.overlap - stats.overlap_chance
        if excess <= max(3 * stats.overlap_error, 0.05 * stats.overlap_chance):
            warnings.append("routing looks independent from token to token: no policy can gain from recency in it")
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

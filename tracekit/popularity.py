"""How often each expert was chosen: from a trace, or from the counts that serving engines write.

    {"logical_count": [[0, 17, 4, ...], ...]}

is what SGLang reads as `--init-expert-location FILE.json` (python/sglang/srt/eplb/expert_location.py), and so does
KTransformers' kt-kernel, which serves through it: integers [layers, experts], or [passes, layers, experts], which are
added up. Layers are the model's; a dense layer counts nothing. Counts say which experts are popular and no more: they
are a profile, and no trace.
"""

from pathlib import Path

import msgspec
import numpy as np

from tracekit.arrays import F64
from tracekit.errors import ImportFormatError, PlanError
from tracekit.importers.saved import read_text, refuse_pickle
from tracekit.rows import UNUSED
from tracekit.shards import file_digest
from tracekit.trace import Trace

_INFLATION = 24
_KEY = "logical_count"


class _Counts(msgspec.Struct):
    logical_count: list[list[int | float | list[int | float]]]


def popularity(profile: Path, experts_per_layer: list[int], *, soft: bool = False) -> F64:
    """How often each expert was chosen, [MoE layers, experts], in a trace directory or a file of counts.

    `soft`: of a trace that holds weights, what the tokens that chose it gave it, added up (soft counts). Raises
    TraceError or ImportFormatError when it is neither, PlanError when it is of a model with other MoE layers or
    experts.
    """
    if profile.is_file():
        counts = read_counts(profile)
        if len(counts) != len(experts_per_layer):
            counts = counts[counts.any(axis=1)]  # dense layers
        fits = counts.shape == (len(experts_per_layer), max(experts_per_layer))
        fits = fits and not any(row[experts:].any() for row, experts in zip(counts, experts_per_layer, strict=True))
    else:
        trace = Trace.open(profile)
        fits = list(trace.manifest.experts_per_layer) == experts_per_layer
        counts = counted(trace, soft=soft) if fits else np.zeros((0, 0))
    if not fits:
        raise PlanError(f"{profile} is of a model with other MoE layers or experts: it is no profile for this one")
    return counts


def profile_digest(profile: Path) -> str:
    """sha256 of what a profile holds. Raises TraceError when it is neither a file nor a trace."""
    return file_digest(profile) if profile.is_file() else Trace.open(profile).digest


def read_counts(source: Path) -> F64:
    """A file of counts, [layers, experts]. Raises ImportFormatError when it is none."""
    refuse_pickle(source)
    try:
        found = msgspec.json.decode(read_text(source, _INFLATION), type=_Counts).logical_count
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImportFormatError(f"{source} holds no counts of experts: {error}") from None
    try:
        counts = np.array(found)
    except (ValueError, OverflowError):  # rows of several lengths
        counts = np.zeros(0)
    counts = counts.sum(axis=0) if counts.ndim == 3 else counts
    if counts.ndim != 2 or counts.dtype.kind not in "if" or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ImportFormatError(f"{source}: {_KEY} is not counts [layers, experts] or [passes, layers, experts]")
    return counts.astype(np.float64)


def counted(trace: Trace, *, soft: bool = False) -> F64:
    """How often tokens of a trace chose each expert, [MoE layers, experts]; `soft` as in `popularity`.

    Sums of half-precision numbers are exact, in whatever order.
    """
    layers, experts, chosen = trace.layers, trace.num_experts, trace.experts != UNUSED
    keys = (trace.experts + (np.arange(layers) * experts)[None, :, None])[chosen]
    given = trace.weights if soft else None
    weights = None if given is None else given[chosen].astype(np.float64)
    return np.bincount(keys, weights, layers * experts).reshape(layers, experts).astype(np.float64)

"""Whether a measurement fell inside what the prior of the model's granularity says, were nothing recorded of it."""

import tempfile
from pathlib import Path

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.shapes import ModelShape
from experiments.prior import Interval, interval
from tracekit.caution import MARK
from tracekit.errors import TracekitError
from tracekit.priors import family_of, prior_traces
from tracekit.rows import PREFILL
from tracekit.trace import Trace


class PriorCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A measured speed and hit ratio against the prior's interval; None inside where one of them is not known."""

    mark: str
    family: str
    notice: str
    tokens_per_second: Interval
    measured_tokens_per_second: float | None
    inside: bool | None
    decode_hit_ratio: Interval
    measured_hit_ratio: float
    hit_ratio_inside: bool | None

    def sentence(self) -> str:
        """One line for people."""
        said, measured = self.tokens_per_second, self.measured_tokens_per_second
        if self.inside is None or said.low is None or said.high is None or measured is None:
            return f"the prior of this granularity ({self.family}) says no speed here"
        verdict = "inside" if self.inside else "outside"
        return (
            f"the prior of this granularity ({self.family}) said {said.low:.2f} to {said.high:.2f} tokens/s: "
            f"measured {measured:.2f}, {verdict}"
        )


def against_prior(
    trace: Trace,
    plan: Plan,
    machine: HardwareProfile,
    measured_tokens_per_second: float | None,
    *,
    shape: ModelShape | None = None,
    seed: int = 0,
) -> PriorCheck | None:
    """Replay `plan` on `machine` with routing drawn from the prior: as many requests, prompts and tokens as `trace`.

    `trace` is the routing of the run that was measured, with sizes of experts, or of `shape`. None where the plan reads
    what no prior has: a look ahead, gate logits, token ids, or a profile of the model.
    """
    manifest = trace.manifest
    prompts = int((trace.phase == PREFILL).sum())
    requests = max(1, manifest.requests)
    family = family_of(trace.num_experts, trace.top_k)
    with tempfile.TemporaryDirectory() as folder:
        traces = prior_traces(
            manifest.experts_per_layer,
            trace.top_k,
            tokens=trace.tokens - prompts,
            prompt_tokens=round(prompts / requests),
            requests=requests,
            seed=seed,
            folder=Path(folder),
            family=family,
            sizes=manifest,
        )
        try:
            found = {
                level: replay(drawn, plan, machine, model_shape=shape, bounds=False) for level, drawn in traces.items()
            }
        except TracekitError:
            return None
    # How good the plan is on requests that it knows is not what is asked.
    own = replay(trace, plan, machine, model_shape=shape, bounds=False, allow_fitted=True).phases.decode.hit_ratio
    speeds = interval({level: one.time.tokens_per_second if one.time else None for level, one in found.items()})
    hits = interval({level: one.phases.decode.hit_ratio for level, one in found.items()})
    return PriorCheck(
        mark=MARK,
        family=family.name,
        notice=family.notice(trace.num_experts, trace.top_k),
        tokens_per_second=speeds,
        measured_tokens_per_second=measured_tokens_per_second,
        inside=inside(speeds, measured_tokens_per_second),
        decode_hit_ratio=hits,
        measured_hit_ratio=own,
        hit_ratio_inside=inside(hits, own),
    )


def inside(said: Interval, measured: float | None) -> bool | None:
    """Whether a figure lies between the ends, which are of localities and may come in either order."""
    ends = [said.low, said.likely, said.high]
    known = [end for end in ends if end is not None]
    if measured is None or len(known) < len(ends):
        return None
    return min(known) <= measured <= max(known)

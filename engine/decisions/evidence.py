"""Fair by construction: what a predictor says of requests that it was fitted on is no evidence."""

from engine.plan.plan import Plan
from policies.learned.artefact import Artefact, load_artefact
from tracekit.errors import PlanError
from tracekit.requests import known_requests
from tracekit.trace import Trace


def artefacts_of(plan: Plan) -> list[Artefact]:
    """The fitted predictors that a plan names. Raises PolicyError."""
    found = []
    if plan.prefetch.artefact is not None:
        found.append(load_artefact(plan.prefetch.artefact, "prefetch"))
    if plan.eviction.artefact is not None:
        found.append(load_artefact(plan.eviction.artefact, "eviction"))
    return found


def check_evidence(trace: Trace, plan: Plan, *, allow_fitted: bool = False) -> list[str]:
    """Refuse to replay what a predictor of `plan` has learned from; with `allow_fitted` say so instead, as warnings.

    Requests are known by what they hold, not by where the trace lies: a copy, a slice or a merge does not hide them.
    Raises PlanError.
    """
    warnings = []
    for artefact in artefacts_of(plan):
        seen = known_requests(trace, artefact.card.fitted.requests)
        if not seen:
            continue
        count = f"{len(seen)} of the {trace.manifest.requests} requests of {trace.path}"
        if not allow_fitted:
            unseen = "" if len(seen) == trace.manifest.requests else ": replay the others (tracekit slice), or"
            raise PlanError(
                f"predictor {artefact.path} was fitted on {count}, so they are no evidence{unseen or ';'} "
                "--allow-fitted replays them and marks the result"
            )
        warnings.append(f"NOT EVIDENCE: predictor {artefact.path} was fitted on {count}")
    return warnings

"""Fair by construction: what was learned from requests is no evidence on them."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.plan.placement import load_placement, parse_pinned
from engine.plan.plan import Plan
from policies.learned.artefact import Artefact, load_artefact
from tracekit.errors import PlanError, shortened
from tracekit.requests import known_requests, request_digests, text_digests
from tracekit.trace import Trace


class Learned(NamedTuple):
    """Something in a plan that was made from requests, known by their digests."""

    what: str
    made: str
    requests: frozenset[str]


def artefacts_of(plan: Plan) -> list[Artefact]:
    """The fitted predictors that a plan names. Raises PolicyError."""
    found = []
    if plan.prefetch.artefact is not None:
        found.append(load_artefact(plan.prefetch.artefact, "prefetch"))
    if plan.eviction.artefact is not None:
        found.append(load_artefact(plan.eviction.artefact, "eviction"))
    return found


def learned_of(plan: Plan) -> Iterator[Learned]:
    """What the plan knows from routing that was recorded: predictors, placements, the split of its capacity, profiles.

    Of files of counts nobody can say whose requests they count. Raises PlanError, PolicyError, TraceError.
    """
    for artefact in artefacts_of(plan):
        yield Learned(f"predictor {artefact.path}", "fitted on", frozenset(artefact.card.fitted.requests))
    pinned = None if plan.placement.pinned is None else parse_pinned(plan.placement.pinned).file
    for file, what in ((pinned, "placement"), (plan.cache.warm_file, "cache.warm")):
        source = None if file is None else load_placement(file).source
        if source is not None:
            yield Learned(f"{what} {file}", "made from", frozenset(source.requests))
    for path, what in (
        (plan.placement.profile, f"the profile of placement {plan.placement.pinned}"),
        *_profiles(plan),
        (plan.cache.split_from, "cache.split_from"),
        (plan.cache.warm_trace, "cache.warm"),
    ):
        if path is not None and Path(path).is_dir():
            yield Learned(f"{what} ({path})", "made from", _digests_at(path, Trace.open(Path(path)).digest))


def _profiles(plan: Plan) -> list[tuple[str | None, str]]:
    """The profiles that say what a model becomes, and their names."""
    tiers = None if plan.precision is None else plan.precision.profile
    return [(plan.routing.profile, "routing.profile"), (tiers, "precision.profile")]


@lru_cache(16)
def _digests_at(path: str, digest: str) -> frozenset[str]:
    """Of the trace of this `digest` at `path`: a study asks for each of its cells."""
    return digests_of(Trace.open(Path(path)))


def digests_of(trace: Trace) -> frozenset[str]:
    """The digests of all requests of a trace."""
    return frozenset(digest for own in request_digests(trace).values() for digest in own)


def check_texts(texts: Mapping[str, np.ndarray], plan: Plan) -> None:
    """Refuse to measure on `texts`, token ids by name, a model that `plan` made of their routing. Raises PlanError."""
    for path, what in _profiles(plan):
        if path is None or not Path(path).is_dir():
            continue
        known = _digests_at(path, Trace.open(Path(path)).digest)
        seen = [name for name, ids in texts.items() if known.intersection(text_digests(ids))]
        if seen:
            raise PlanError(
                f"{what} ({path}) holds {len(seen)} of the {len(texts)} texts, {shortened(seen[0])!r} first: they are "
                "no evidence on what was made from them; measure on others"
            )


def check_evidence(trace: Trace, plan: Plan, *, allow_fitted: bool = False) -> list[str]:
    """Refuse to replay what `plan` has learned from; with `allow_fitted` say so instead, as warnings.

    Requests are known by what they hold, not by where the trace lies: a copy, a slice or a merge does not hide them.
    The profile of `static` is the one thing that is never refused: with the trace's own it is best in hindsight, which
    the result says. Raises PlanError.
    """
    warnings = []
    for learned in learned_of(plan):
        seen = known_requests(trace, learned.requests)
        if not seen:
            continue
        count = f"{len(seen)} of the {trace.manifest.requests} requests of {trace.path}"
        if not allow_fitted:
            unseen = "" if len(seen) == trace.manifest.requests else ": replay the others (tracekit slice), or"
            raise PlanError(
                f"{learned.what} was {learned.made} {count}, so they are no evidence{unseen or ';'} "
                "--allow-fitted replays them and marks the result"
            )
        warnings.append(f"NOT EVIDENCE: {learned.what} was {learned.made} {count}")
    profile = plan.eviction.profile
    if (
        profile is not None
        and Path(profile).is_dir()
        and known_requests(trace, _digests_at(profile, Trace.open(Path(profile)).digest))
    ):
        warnings.append(f"NOT EVIDENCE: eviction.profile ({profile}) holds requests of {trace.path}: hindsight")
    return warnings

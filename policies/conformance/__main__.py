"""`python -m policies.conformance STAGE KIND NAME SECONDS FOLDER [DIGEST]`: the process in which a policy is tried.

Writes one JSON object per line to FOLDER/log; what it was doing when it hung, to FOLDER/stuck.
"""

import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

from policies import registry
from policies.conformance.report import FAIL
from policies.conformance.routing_trial import RoutingTrial
from policies.conformance.rules import BASES, Trial
from policies.conformance.tier_trial import TierTrial
from policies.fields import Policy
from policies.precision.base import TierRule
from policies.routing.base import RoutingPolicy
from tracekit.errors import PolicyError, TracekitError

COMPILING = 300.0  # seconds that numba may take, whatever the policy


def main(stage: str, kind: str, name: str, seconds: str, folder: str, digest: str = "") -> None:
    """Try the policy in stage "interpreted" or "compiled". KIND may be empty for a path."""
    with (Path(folder) / "log").open("a") as log, (Path(folder) / "stuck").open("w") as stuck:

        def tell(**what: Any) -> None:
            print(json.dumps(what), file=log, flush=True)

        def trying(text: str, compiling: bool = False) -> None:
            # From its own thread, and without asking Python: it also ends compiled code that does not return.
            faulthandler.dump_traceback_later(COMPILING if compiling else float(seconds), exit=True, file=stuck)
            tell(trying=text)

        trying("loading")
        try:
            kind, policy = load(kind, name)
            tell(kind=kind)
            trial: Trial | RoutingTrial | TierTrial
            if issubclass(policy, RoutingPolicy):
                trial = RoutingTrial(name, policy, trying)
            elif issubclass(policy, TierRule):
                trial = TierTrial(name, policy, trying)
            else:
                trial = Trial(kind, name, policy, trying)
            outcomes = list(trial.interpreted()) if stage == "interpreted" else list(trial.compiled(digest))
            for outcome in outcomes:
                tell(rule=outcome.rule, status=outcome.status, message=outcome.message)
            if stage == "interpreted" and all(outcome.status != FAIL for outcome in outcomes):
                tell(digest=trial.digest())
        except TracekitError as error:
            tell(error=str(error))
        tell(finished=True)
        faulthandler.cancel_dump_traceback_later()


def load(kind: str, name: str) -> tuple[str, type[Policy]]:
    """The kind and the class behind a name, whose hooks need not be right. Raises PolicyError."""
    builtin = registry.BUILTIN.get(kind, {})
    found = registry.locate(kind, name, builtin)
    for known, base in BASES.items():
        if kind in ("", known) and isinstance(found, type) and issubclass(found, base):
            return known, found
    wanted = " or ".join(f"{base.__module__}.{base.__name__}" for base in BASES.values())
    raise PolicyError(f"policy {name!r} is not a subclass of {wanted}")


if __name__ == "__main__":
    main(*sys.argv[1:])
